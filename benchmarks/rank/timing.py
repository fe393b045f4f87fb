"""Check that the engines of a case give equal answers, then time them in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.rank.engines import FAISS, OURS, Case, engines
from dmsh_serving.errors import CheckError
from dmsh_serving.timing import in_turns

__all__ = ["Measured", "Timing", "measure", "milliseconds_in_turns"]

_SPAN_SECONDS: Final = 0.004  # per timed turn; a shorter call is repeated
_REST_SECONDS: Final = 0.01  # until the previous engine's threads sleep: OpenMP's spin for milliseconds
_ENOUGH_SECONDS: Final = 1.5  # an engine that has run for so long gets no further turns
_WARM_SECONDS: Final = 0.01  # of calls before a turn: the previous engine emptied the caches
_WORTH_A_TURN: Final = 1.5


@dataclass(frozen=True)
class Timing:
    """The median turn of one engine, in milliseconds per call."""

    engine: str
    milliseconds: float


@dataclass(frozen=True)
class Measured:
    """One case and the time that each engine took."""

    case: Case
    timings: tuple[Timing, ...]

    def milliseconds(self, engine: str) -> float | None:
        """Return what ``engine`` took in its fastest setting, or None if it did not run."""
        found = [timing.milliseconds for timing in self.timings if timing.engine.startswith(engine)]
        return min(found, default=None)

    def times_ours(self, engine: str) -> float | None:
        """Return the time of ``engine``, in its fastest setting, divided by ours; None if one of them did not run."""
        its, ours = self.milliseconds(engine), self.milliseconds(OURS)
        return None if its is None or ours is None else its / ours

    @property
    def gigabytes_per_s(self) -> float:
        """Gigabytes of codes that our search compares per second, counted once per query."""
        ours = self.milliseconds(OURS) or float("nan")
        return self.case.codes * ((self.case.bits + 7) // 8) * self.case.queries / ours / 1e6


def measure(case: Case, rounds: int) -> Measured:
    """Run one case on every engine.

    Raises:
        CheckError: an engine found other distances than ours.
    """
    queries, codes = case.made()
    calls = engines(case, queries, codes)
    expected = np.asarray(calls[OURS]())
    first: dict[str, float] = {}
    for name, call in calls.items():
        start = time.perf_counter()
        found = call()
        first[name] = time.perf_counter() - start
        if found is not None and not np.array_equal(found, expected):
            raise CheckError(f"{name} and {OURS} disagree on {case}: one of them is wrong")
    times = milliseconds_in_turns({name: call for name, call in calls.items() if not _hopeless(name, first)}, rounds)
    return Measured(case, tuple(Timing(name, milliseconds) for name, milliseconds in times.items()))


def _hopeless(name: str, first: Mapping[str, float]) -> bool:
    """Say whether a setting of FAISS took so long that another one is its best anyway."""
    best = min((seconds for other, seconds in first.items() if other.startswith(FAISS)), default=0.0)
    return name.startswith(FAISS) and first[name] > max(_WORTH_A_TURN * best, _SPAN_SECONDS)


def milliseconds_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds per call of each, timed once per round."""
    seconds = in_turns(
        list(calls.values()),
        rounds,
        span_seconds=_SPAN_SECONDS,
        rest_seconds=_REST_SECONDS,
        warm_seconds=_WARM_SECONDS,
        enough_seconds=_ENOUGH_SECONDS,
    )
    return {name: 1e3 * statistics.median(spent) for name, spent in zip(calls, seconds, strict=True)}
