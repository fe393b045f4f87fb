"""Time what a served search costs: lone requests, and as many as the machine takes."""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from benchmarks.serve.world import Images
from dmsh_export.compare.latency import Latency, latency_from_seconds
from dmsh_serving.timing import in_turns

__all__ = ["lone", "saturated"]

Call = Callable[[Images], object]

_WARM_SECONDS: Final = 0.05  # before a turn: whoever ran before emptied the caches


def lone(calls: Mapping[str, Call], images: Images, *, rounds: int, a_round: int) -> list[Latency]:
    """Time calls of one image each, one after the other, in turns of ``a_round``."""
    asking = [functools.partial(_ask_next, call, itertools.cycle(images)) for call in calls.values()]
    seconds = in_turns(asking, rounds, spans=a_round, warm_seconds=_WARM_SECONDS)
    return [latency_from_seconds(name, 1, spent) for name, spent in zip(calls, seconds, strict=True)]


def saturated(
    calls: Mapping[str, tuple[Call, int]], images: Images, *, batch: int, rounds: int, images_a_round: int
) -> dict[str, float]:
    """Return images/s of each call with its number of clients, which ask without pause; the median round."""
    asked = np.concatenate([images] * -(-batch // len(images)))[:batch]
    calls_each = {name: max(1, images_a_round // (batch * clients)) for name, (_, clients) in calls.items()}
    for call, _ in calls.values():
        call(asked)
    bursts = [
        functools.partial(_burst, functools.partial(call, asked), clients, calls_each[name])
        for name, (call, clients) in calls.items()
    ]
    seconds = dict(zip(calls, in_turns(bursts, rounds), strict=True))
    return {
        name: batch * clients * calls_each[name] / statistics.median(seconds[name])
        for name, (_, clients) in calls.items()
    }


def _ask_next(call: Call, images: Iterator[Images]) -> None:
    call(next(images)[None])


def _burst(call: Callable[[], object], clients: int, calls_each: int) -> None:
    """Let ``clients`` threads make their calls, one after the other, all clients at once."""

    def ask(_: int) -> None:
        for _ in range(calls_each):
            call()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
