"""Time what a served search costs: lone requests, and as many as the machine takes."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from benchmarks.serve.world import Images
from dmsh_export.compare.latency import Latency, latency_from_seconds

Call = Callable[[Images], object]

_WARM_CALLS: Final = 10  # before a turn: whoever ran before emptied the caches


def lone(calls: Mapping[str, Call], images: Images, *, rounds: int, a_round: int) -> list[Latency]:
    """Time calls of one image each, one after the other, in turns of ``a_round``."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for number in range(_WARM_CALLS):
                call(images[number % len(images)][None])
            for number in range(a_round):
                image = images[number % len(images)][None]
                start = time.perf_counter()
                call(image)
                seconds[name].append(time.perf_counter() - start)
    return [latency_from_seconds(name, 1, spent) for name, spent in seconds.items()]


def saturated(
    calls: Mapping[str, tuple[Call, int]], images: Images, *, batch: int, rounds: int, images_a_round: int
) -> dict[str, float]:
    """Return images/s of each call with its number of clients, which ask without pause; the median round."""
    asked = np.concatenate([images] * -(-batch // len(images)))[:batch]
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, clients) in calls.items():
            each = max(1, images_a_round // (batch * clients))
            seconds = _seconds(functools.partial(call, asked), clients, each)
            found[name].append(batch * clients * each / seconds)
    return {name: statistics.median(speeds) for name, speeds in found.items()}


def _seconds(call: Callable[[], object], clients: int, calls_each: int) -> float:
    """Return how long ``clients`` threads take for their calls, one after the other, all clients at once."""

    def ask(_: int) -> None:
        for _ in range(calls_each):
            call()

    call()
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        for done in [pool.submit(ask, client) for client in range(clients)]:
            done.result()
        return time.perf_counter() - start
