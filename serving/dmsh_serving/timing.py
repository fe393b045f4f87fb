"""Time calls in turns, so that a busy moment of the machine hits all of them: a ratio of two of them can be trusted."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["in_turns"]

_LONG: Final = 5  # a call that takes this many times the warm-up's seconds warms the caches for itself
_LEAST_ROUNDS: Final = 3


def in_turns(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    *,
    spans: int = 1,
    span_seconds: float = 0.0,
    rest_seconds: float = 0.0,
    warm_seconds: float = 0.0,
    enough_seconds: float = math.inf,
    before_round: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Give each call one turn per round, and return the seconds per call of each of its timed spans.

    Args:
        calls: what to time, in the order of the turns.
        rounds: number of rounds.
        spans: timed spans per turn.
        span_seconds: repeat a short call within its span until this has passed; 0 calls it once.
        rest_seconds: sleep before each turn, until the threads of the previous call are idle.
        warm_seconds: call untimed for this long before each turn, because the previous call emptied the caches.
        enough_seconds: a call that was timed for this long, in 3 rounds at least, gets no further turns.
        before_round: called untimed with the number of the round, from 0.

    Returns:
        One list per call, (rounds * spans) seconds or, after ``enough_seconds``, fewer.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        if before_round:
            before_round(number)
        for call, spent in zip(calls, seconds, strict=True):
            if number >= _LEAST_ROUNDS and sum(spent) > enough_seconds:
                continue
            time.sleep(rest_seconds)
            if warm_seconds and (not spent or spent[-1] < _LONG * warm_seconds):
                _seconds_per_call(call, warm_seconds)
            spent.extend(_seconds_per_call(call, span_seconds) for _ in range(spans))
    return seconds


def _seconds_per_call(call: Callable[[], object], least: float) -> float:
    """Call once or more until ``least`` seconds have passed."""
    count, start = 0, time.perf_counter()
    while True:
        call()
        count += 1
        spent = time.perf_counter() - start
        if spent >= least:
            return spent / count
