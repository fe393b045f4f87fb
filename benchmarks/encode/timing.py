"""Time the contenders in turns, and count the bits that each gets wrong."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.encode.contenders import Contender, Logits
from dmsh_export.compare.runners import Images
from dmsh_serving.timing import in_turns

__all__ = ["Row", "Setting", "Wrong", "logits_of", "seconds_in_turns", "settings", "wrong_of"]

_LEAST_SECONDS = 0.02  # of one timed span: calls shorter than this are repeated within it
_REST_SECONDS: Final = 0.005  # until the threads of the previous contender sleep
_AT_ONCE = 4  # images of a batch when bits are compared


@dataclass(frozen=True)
class Setting:
    """How encoders are called: ``batch`` images at a time on ``threads`` threads."""

    batch: int
    threads: int


@dataclass(frozen=True)
class Row:
    """One contender in one setting; ``images_per_s`` is of the median round."""

    network: str
    contender: str
    batch: int
    threads: int
    images_per_s: float
    slowest_images_per_s: float
    rounds: int
    share_of_peak: float
    isa: str


@dataclass(frozen=True)
class Wrong:
    """The differences of one contender from ``reference``, the network in PyTorch that it must equal."""

    network: str
    contender: str
    reference: str
    bits: int
    wrong_bits: int
    different_logits: int


def settings(batches: Sequence[int]) -> list[Setting]:
    """Return each batch size on two threads (or as many as there are), and the first also on one."""
    most = min(2, len(os.sched_getaffinity(0)))
    chosen = [Setting(batch, most) for batch in batches]
    return chosen if most == 1 else [Setting(batches[0], 1), *chosen]


def seconds_in_turns(ready: Sequence[Contender], images: Images, batch: int, rounds: int) -> list[list[float]]:
    """Return the seconds per call of each contender on ``batch`` images, one figure per round."""
    block = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    calls = [functools.partial(contender.run, block) for contender in ready]
    for call in calls:
        call()
    return in_turns(calls, rounds, span_seconds=_LEAST_SECONDS, rest_seconds=_REST_SECONDS)


def logits_of(run: Callable[[Images], Logits], images: Images) -> Logits:
    """Return all logits (N, K), a few images at a time."""
    return np.concatenate([run(images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)])


def wrong_of(network: str, contender: Contender, expected: Logits, found: Logits) -> Wrong:
    """Count how ``found`` differs from ``expected``, both (N, K)."""
    return Wrong(
        network,
        contender.name,
        contender.reference,
        expected.size,
        int(((expected > 0) != (found > 0)).sum()),
        int((expected != found).sum()),
    )
