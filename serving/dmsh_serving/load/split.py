"""Where a server's time goes, by its own account: its models' counters before and after.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_statistics.html
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ModelCounts", "ModelSplit", "splits_between"]


@dataclass(frozen=True)
class ModelCounts:
    """What a model has done since its server started; times in nanoseconds, summed over requests.

    ``rows`` are images, ``calls`` executions of the model, each for one or more requests.
    """

    requests: int = 0
    rows: int = 0
    calls: int = 0
    total: int = 0
    queue: int = 0
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0

    def since(self, before: "ModelCounts") -> "ModelCounts":
        """Return what was done since ``before``."""
        return ModelCounts(*(now - then for now, then in zip(vars(self).values(), vars(before).values(), strict=True)))


@dataclass(frozen=True)
class ModelSplit:
    """What one model did meanwhile; times are means over its requests, in milliseconds.

    Attributes:
        model: its name.
        requests: that it answered.
        rows_per_call: images that it computed together.
        total_ms: from a request's arrival at the model to its answer.
        queue_ms: of that, waiting for its turn.
        compute_ms: of that, computing, copies included.
    """

    model: str
    requests: int
    rows_per_call: float
    total_ms: float
    queue_ms: float
    compute_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def splits_between(before: Mapping[str, ModelCounts], after: Mapping[str, ModelCounts]) -> list[ModelSplit]:
    """Return what each model did between two accounts; without those that did nothing."""
    done = {name: counts.since(before.get(name, ModelCounts())) for name, counts in after.items()}
    return [_split(name, counts) for name, counts in done.items() if counts.requests > 0]


def _split(name: str, done: ModelCounts) -> ModelSplit:
    def mean(nanoseconds: int) -> float:
        return nanoseconds / done.requests / 1e6

    return ModelSplit(
        name,
        done.requests,
        done.rows / done.calls if done.calls else 0.0,
        mean(done.total),
        mean(done.queue),
        mean(done.compute_input + done.compute_infer + done.compute_output),
    )
