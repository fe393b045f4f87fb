"""Codes to nearest images, from a gallery folder whose current version is followed while it serves.

A new version is opened and checked whole beside the one that serves, then swapped in between two searches, so every
answer comes from one version and names it. A version that cannot be used is logged and counted, and the old one
goes on serving.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dmsh_serving import gallery
from dmsh_serving.errors import DmshError
from dmsh_serving.ranker.asks import Ask, Ranked, rank

POLL_SECONDS = 0.5
_log = logging.getLogger(__name__)


class RankerEvents:
    """What a ranker tells, for whoever counts it; here: nobody. Calls come from several threads."""

    def serving(self, snapshot: gallery.Snapshot, swapped: bool) -> None:
        """A version serves from now on: the first one, or one that was swapped in."""

    def refused(self) -> None:
        """A new version cannot be used, and the one before it goes on serving."""

    def ranked(self, queries: int, seconds: float) -> None:
        """So many queries were answered, in so long. Their answers wait for this call."""

    def report(self) -> None:
        """It is time to hand on what was counted: some times a second, and no answer waits."""


class Ranker:
    """Search the current version of the gallery in ``folder``: ``with Ranker(...) as ranker: ranker.search(codes, k)``.

    A new version shares the parts that it has in common with the one that serves: they are not read again.

    Raises:
        InputError: no gallery there, a damaged one, or one of another bit width or fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bits: int,
        fingerprint: str,
        threads: int | None = None,
        poll_seconds: float = POLL_SECONDS,
        events: RankerEvents | None = None,
    ) -> None:
        self.folder, self.bits, self.fingerprint = folder, bits, fingerprint
        self.failed_swaps = 0
        self._threads, self._poll_seconds, self._events = threads, poll_seconds, events or RankerEvents()
        self._snapshot = gallery.open_current(folder, fingerprint=fingerprint, bits=bits)
        self._events.serving(self._snapshot, swapped=False)
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._follow, name="gallery-watch", daemon=True)
        self._watch.start()

    def __enter__(self) -> "Ranker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop following the gallery."""
        self._stop.set()
        self._watch.join()

    @property
    def version(self) -> str:
        """The gallery version that serves now."""
        return self._snapshot.version

    def search(
        self,
        codes: npt.NDArray[np.uint8],
        k: int,
        *,
        radius: int | None = None,
        filters: npt.NDArray[np.int64] | None = None,
        logits: npt.NDArray[np.float32] | None = None,
    ) -> Ranked:
        """Return the ``k`` nearest images of each of ``codes`` (N, B) uint8; see :class:`dmsh_serving.ranker.asks.Ask`.

        Raises:
            InputError: codes of another width or dtype, or k, radius, filters or logits that cannot be.
        """
        ask = Ask(codes, k, radius, filters, logits)
        ask.check(self.bits)
        (answer,) = self.rank([ask])
        return answer

    def rank(self, asks: Sequence[Ask]) -> list[Ranked]:
        """Answer all ``asks``, which :meth:`Ask.check` found good, from one version of the gallery in few scans."""
        start = time.perf_counter()
        snapshot = self._snapshot  # one version for the whole call, whatever is swapped in meanwhile
        answers = rank(snapshot, asks, threads=self._threads)
        self._events.ranked(sum(len(ask.codes) for ask in asks), time.perf_counter() - start)
        return answers

    def _follow(self) -> None:
        refused: str | None = None  # what CURRENT said when it was last refused: one report for each new state
        while not self._stop.wait(self._poll_seconds):
            try:
                self._events.report()
            except Exception:  # whoever counts may fail in its own ways; the gallery is followed all the same
                _log.exception("what was counted could not be reported")
            named = ""
            try:
                named = gallery.current_version(self.folder)
                if named not in (self._snapshot.version, refused):
                    self._snapshot = gallery.open_current(
                        self.folder, fingerprint=self.fingerprint, bits=self.bits, known=self._snapshot
                    )
                    self._events.serving(self._snapshot, swapped=True)
                    _log.warning("gallery %s now serves version %s", self.folder, self._snapshot.version)
                if named == self._snapshot.version:
                    refused = None
            except (DmshError, OSError) as error:
                if named != refused:
                    refused = named
                    self._report(error)

    def _report(self, error: Exception) -> None:
        self.failed_swaps += 1
        _log.error("gallery %s: %s; version %s goes on serving", self.folder, error, self.version)
        self._events.refused()
