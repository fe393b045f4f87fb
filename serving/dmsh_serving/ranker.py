"""Codes to nearest images, from a gallery folder whose current version is followed while it serves.

A new version is opened and checked whole beside the one that serves, then swapped in between two searches, so every
answer comes from one version and names it. A version that cannot be used is logged and counted, and the old one
goes on serving.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dmsh_serving import gallery
from dmsh_serving.checks import checked_k
from dmsh_serving.codes import check_codes
from dmsh_serving.errors import DmshError

POLL_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranked:
    """The k nearest images of N codes, ordered by (distance, id).

    Attributes:
        ids: (N, k) int64.
        distances: (N, k) int32.
        keys: (N, k) object, str.
        gallery_version: the one version that answered.
    """

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    keys: npt.NDArray[np.object_]
    gallery_version: str

    def rows(self, start: int, stop: int) -> "Ranked":
        """Return the answers to the queries from ``start`` up to ``stop``."""
        part = slice(start, stop)
        return Ranked(self.ids[part], self.distances[part], self.keys[part], self.gallery_version)


class Ranker:
    """Search the current version of the gallery in ``folder``: ``with Ranker(...) as ranker: ranker.search(codes, k)``.

    ``on_failed_swap`` is called, from the watching thread, each time a new version cannot be used.

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
        on_failed_swap: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.bits, self.fingerprint = folder, bits, fingerprint
        self.failed_swaps = 0
        self._threads, self._poll_seconds, self._on_failed_swap = threads, poll_seconds, on_failed_swap
        self._snapshot = self._open()
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

    def search(self, codes: npt.NDArray[np.uint8], k: int) -> Ranked:
        """Return the ``k`` nearest images of each of ``codes`` (N, B) uint8; N may be 0.

        Raises:
            InputError: codes of another width or dtype, or k out of range.
        """
        checked_k(k)
        check_codes(codes, self.bits)
        snapshot = self._snapshot  # one version for the whole call, whatever is swapped in meanwhile
        found = snapshot.search(codes, k, threads=self._threads)
        keys = np.array(snapshot.keys_of(found.rows.ravel()), dtype=np.object_).reshape(found.rows.shape)
        return Ranked(found.ids, found.distances, keys, snapshot.version)

    def _open(self) -> gallery.Snapshot:
        return gallery.open_current(self.folder, fingerprint=self.fingerprint, bits=self.bits)

    def _follow(self) -> None:
        refused: str | None = None  # what CURRENT said when it was last refused: one report for each new state
        while not self._stop.wait(self._poll_seconds):
            named = ""
            try:
                named = gallery.current_version(self.folder)
                if named not in (self._snapshot.version, refused):
                    self._snapshot = self._open()
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
        self._on_failed_swap()
