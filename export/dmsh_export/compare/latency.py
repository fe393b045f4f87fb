"""Latency and throughput of encoders in one run: they take turns, so that noise of the machine affects all of them."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from dmsh_export.compare.runners import Images, Runner
from dmsh_serving.errors import InputError
from dmsh_serving.timing import in_turns

__all__ = ["WARM_UP_ROUNDS", "Latency", "latency_from_seconds", "measure"]

WARM_UP_ROUNDS = 3
_REST_SECONDS: Final = 0.005  # until the threads of the previous runner sleep


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
    """Time ``infer`` of each runner on batches of the same images, which are repeated if there are too few.

    ``images_of_size(S)`` gives the images (N, S, S, 3) uint8, N >= 1; S is known once a runner is open. The timed span
    does not contain the making of a batch. ``on_progress(done, total)`` counts rounds.

    Raises:
        InputError: the runners take images of different sizes.
    """
    blocks: list[Images] = []
    with contextlib.ExitStack() as stack:
        for runner in runners:
            stack.enter_context(runner)
        sizes = sorted({runner.image_size for runner in runners})
        if len(sizes) != 1:
            raise InputError(f"the targets take images of different sizes: {', '.join(map(str, sizes))}")
        images = images_of_size(sizes[0])

        def next_block(number: int) -> None:
            rows = (np.arange(batch) + number * batch) % len(images)
            blocks[:] = [np.ascontiguousarray(images[rows])]
            if on_progress and number >= WARM_UP_ROUNDS:
                on_progress(number - WARM_UP_ROUNDS, rounds)

        calls = [partial(_infer, runner, blocks) for runner in runners]
        seconds = in_turns(calls, WARM_UP_ROUNDS + rounds, rest_seconds=_REST_SECONDS, before_round=next_block)
        if on_progress:
            on_progress(rounds, rounds)
    return [
        latency_from_seconds(runner.name, batch, spent[WARM_UP_ROUNDS:])
        for runner, spent in zip(runners, seconds, strict=True)
    ]


def _infer(runner: Runner, blocks: list[Images]) -> None:
    runner.infer(blocks[0])
