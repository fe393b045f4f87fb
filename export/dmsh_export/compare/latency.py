"""Latency and throughput of encoders, side by side in one run: rounds interleaved, so that a noisy machine hits all."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmsh_export.compare.runners import Images, Runner
from dmsh_serving.errors import InputError

WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of ``batch`` images, over ``rounds`` calls; ``images_per_s`` is from the median."""

    target: str
    batch: int
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def latency_from_seconds(target: str, batch: int, seconds: Sequence[float]) -> Latency:
    """Summarise the durations of calls of ``batch`` images."""
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Latency(target, batch, len(seconds), p50, p90, p99, batch / p50 * 1e3)


def measure(
    runners: Sequence[Runner],
    images_of_size: Callable[[int], Images],
    *,
    batch: int,
    rounds: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Latency]:
    """Time ``infer`` of each runner on batches of the same images, repeated where there are too few.

    ``images_of_size(S)`` gives the images (N, S, S, 3) uint8, N >= 1: what S is, a runner says when it is open. Making
    a batch is outside the timed span; ``on_progress(done, total)`` counts rounds.

    Raises:
        InputError: the runners take images of different sizes.
    """
    seconds: list[list[float]] = [[] for _ in runners]
    with contextlib.ExitStack() as stack:
        for runner in runners:
            stack.enter_context(runner)
        sizes = sorted({runner.image_size for runner in runners})
        if len(sizes) != 1:
            raise InputError(f"the targets take images of different sizes: {', '.join(map(str, sizes))}")
        images = images_of_size(sizes[0])
        for number in range(-WARM_UP_ROUNDS, rounds):
            rows = (np.arange(batch) + number * batch) % len(images)
            block = np.ascontiguousarray(images[rows])
            for durations, runner in zip(seconds, runners, strict=True):
                start = time.perf_counter()
                runner.infer(block)
                if number >= 0:
                    durations.append(time.perf_counter() - start)
            if on_progress and number >= 0:
                on_progress(number + 1, rounds)
    return [
        latency_from_seconds(runner.name, batch, durations) for runner, durations in zip(runners, seconds, strict=True)
    ]
