"""The best epoch of a training, by mAP of a part of its training images; never of the queries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from dmsh_model.data.labelled import Indices, Split
from dmsh_serving.errors import InputError

__all__ = ["Best", "better", "is_over", "validation_split"]

LEAST_IMAGES = 2  # of either part: the losses compare pairs, and a query needs something to find


@dataclass(frozen=True, eq=False)
class Best:
    """The epoch (from 1) whose weights gave the best mAP so far, and those weights."""

    epoch: int
    map_all: float
    model: dict[str, Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Return what a training's state keeps."""
        return {"epoch": self.epoch, "map_all": self.map_all, "model": self.model}


def better(best: Best | None, epoch: int, map_all: float, model: nn.Module) -> Best:
    """Return the better of ``best`` and ``model`` after ``epoch``; of equals the earlier."""
    if best and map_all <= best.map_all:
        return best
    return Best(epoch, map_all, {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})


def is_over(best: Best | None, epochs_done: int, patience: int) -> bool:
    """Return whether ``patience`` epochs have passed since the best; 0 waits for ever."""
    return best is not None and patience > 0 and epochs_done - best.epoch >= patience


def validation_split(split: Split, share: float, seed: int) -> Split:
    """Return ``split`` with the training images in two: those to learn from (``train``, and ``database``) and queries.

    Args:
        split: split of the data; its own queries are not part of what is returned.
        share: share of the training images that become queries.
        seed: random seed for the drawing.

    Raises:
        InputError: too few training images for two parts.
    """
    drawn: Indices = np.random.RandomState(seed).permutation(split.train)
    count = round(share * len(drawn))
    if min(count, len(drawn) - count) < LEAST_IMAGES:
        raise InputError(
            f"a validation share of {share:g} of {len(drawn)} training images is {count}: at least {LEAST_IMAGES} are "
            "needed, and as many to learn from"
        )
    return Split(drawn[:count], drawn[count:], drawn[count:])
