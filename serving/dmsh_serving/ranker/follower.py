"""Codes to nearest images, from a gallery whose current version is followed while it serves.

A new version is opened and checked whole beside the one that serves, then swapped in between two searches, so every
answer comes from one version and names it. A version that cannot be used is logged, counted and tried again, and the
old one goes on serving. At the start, if the version that ``CURRENT`` names is damaged, the last sound one serves.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.codes import bytes_per_code
from dmsh_serving.errors import DmshError
from dmsh_serving.ranker.asks import Ask, Ranked, rank
from dmsh_serving.ranker.engine import Engine
from dmsh_serving.ranker.places import place_of

__all__ = ["POLL_SECONDS", "Ranker", "RankerEvents"]

POLL_SECONDS: Final = 0.5
_FIRST_RETRY_SECONDS: Final = 0.5
_LAST_RETRY_SECONDS: Final = 8.0
_log = logging.getLogger(__name__)


class RankerEvents:
    """Events of a ranker; this class ignores them, a subclass may count them. Calls come from several threads."""

    def serving(self, snapshot: Engine, swapped: bool) -> None:
        """A version serves from now on: the first one, or one that was swapped in."""

    def wanted(self, version: str) -> None:
        """``version`` should serve from now on: ``CURRENT`` names it."""

    def opened(self, seconds: float) -> None:
        """Opening and checking a version, which is then swapped in, took ``seconds``."""

    def refused(self) -> None:
        """The version that should serve cannot be used, and one before it serves."""

    def following(self, current: bool) -> None:
        """Say at each look whether the version that serves is the one that ``CURRENT`` names."""

    def ranked(self, queries: int) -> None:
        """``queries`` were answered. Their answers wait for this call."""

    def report(self) -> None:
        """Hand on what was counted: called at each look at the gallery, and no answer waits for it."""


class Ranker:
    """Search the current version of the gallery at ``place``: ``with Ranker(...) as ranker: ranker.search(codes, k)``.

    ``place`` is a folder, or an address in ClickHouse.

    A new version shares the parts that it has in common with the one that serves: they are not read again.

    Raises:
        InputError: no gallery there, one without any sound version, or one of another bit width or fingerprint.
    """

    def __init__(
        self,
        place: Path | Address,
        *,
        bits: int,
        fingerprint: str,
        threads: int | None = None,
        poll_seconds: float = POLL_SECONDS,
        events: RankerEvents | None = None,
    ) -> None:
        self.place, self.bits, self.fingerprint = place_of(place), bits, fingerprint
        self.failed_swaps = 0
        self._threads, self._poll_seconds, self._events = threads, poll_seconds, events or RankerEvents()
        self._refusal = _Refusal()
        self._snapshot, damage = self.place.open_sound(fingerprint=fingerprint, bits=bits)
        self._wanted = self.place.named_version()
        self._events.serving(self._snapshot, swapped=False)
        self._events.wanted(self._wanted or self.version)
        self._events.following(damage is None)
        if damage is not None:
            self._refusal.is_news(self.place.named_version(), str(damage))
            _log.error(
                "gallery %s: %s; version %s, the last sound one, serves in its place: mend the gallery, or make this "
                "version its current one with dmsh-serve gallery rollback",
                self.place, damage, self.version,
            )  # fmt: skip
            self._count_refusal()
        _warm(self._snapshot, bits, threads)
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
        snapshot = self._snapshot  # one version for the whole call, whatever is swapped in meanwhile
        answers = rank(snapshot, asks, threads=self._threads)
        self._events.ranked(sum(len(ask.codes) for ask in asks))
        return answers

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self._tell(self._events.report)
            self._look()

    def _look(self) -> None:
        """Swap in the version that ``CURRENT`` names, unless it serves or was refused a moment ago."""
        named: str | None = None
        try:
            named = self.place.current_version()
            if named != self._wanted:
                self._wanted = named
                self._tell(self._events.wanted, named)
            if named != self.version:
                if not self._refusal.allows(named):
                    return
                start = time.perf_counter()
                opened = self.place.open_current(fingerprint=self.fingerprint, bits=self.bits, known=self._snapshot)
                _warm(opened, self.bits, self._threads)
                self._snapshot = opened
                _log.warning("gallery %s now serves version %s", self.place, self.version)
                self._tell(self._events.serving, self._snapshot, swapped=True)
                self._tell(self._events.opened, time.perf_counter() - start)
            self._refusal = _Refusal()
            self._tell(self._events.following, True)
        except Exception as error:  # this thread must never end: whatever goes wrong, it looks again
            if self._refusal.is_news(named, str(error)):
                expected = isinstance(error, DmshError | OSError)
                goes_on = f"version {self.version} goes on serving"
                _log.error("gallery %s: %s; %s", self.place, error, goes_on, exc_info=None if expected else error)
                self._count_refusal()

    def _count_refusal(self) -> None:
        self.failed_swaps += 1
        self._tell(self._events.refused)
        self._tell(self._events.following, False)

    def _tell(self, event: Callable[..., None], *arguments: object, **named: object) -> None:
        """Tell an event; whoever counts may fail in its own ways, and the gallery is followed all the same."""
        try:
            event(*arguments, **named)
        except Exception:
            _log.exception("what was counted could not be reported")


def _warm(version: Engine, bits: int, threads: int | None) -> None:
    """Search a version in each way there is, so that what its searches need is compiled before they come."""
    zeros = np.zeros((2, bytes_per_code(bits)), np.uint8)
    some = np.arange(2, dtype=np.int64)[:, None]
    for ask in (Ask(zeros[:1], 1), Ask(zeros, 1), Ask(zeros, 1, filters=some)):
        rank(version, [ask], threads=threads)


class _Refusal:
    """The version that was refused last: when to try it again, and whether its error was already told.

    A version may still be arriving (rsync writes ``CURRENT`` before the file that it names), so it is tried again, each
    time after twice as long, since checking a large damaged file costs a second.
    """

    def __init__(self) -> None:
        self._named: str | None = None
        self._error = ""
        self._wait = _FIRST_RETRY_SECONDS
        self._again = 0.0

    def allows(self, named: str) -> bool:
        """Say whether ``named`` is another version than the refused one, or its time has come."""
        return named != self._named or time.monotonic() >= self._again

    def is_news(self, named: str | None, error: str) -> bool:
        """Note that ``named`` was refused; say whether that has not been told yet."""
        news = (named, error) != (self._named, self._error)
        self._wait = _FIRST_RETRY_SECONDS if news else min(2 * self._wait, _LAST_RETRY_SECONDS)
        self._named, self._error, self._again = named, error, time.monotonic() + self._wait
        return news
