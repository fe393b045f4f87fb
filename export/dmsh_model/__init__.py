"""The Deep Multi-Scale Hashing (DMSH) network in PyTorch: definition, training, evaluation, checkpoints.

model = dmsh_model.load("checkpoint")
codes = model.codes(images)             # uint8 (N, H, W, 3) -> uint8 (N, ceil(K/8))
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_model.config import HashConfig, LossWeights

if TYPE_CHECKING:
    from dmsh_model.integer.reference import IntegerDMSH
    from dmsh_model.network import DMSH

__all__ = ["HashConfig", "LossWeights", "load"]


def load(path: str | Path) -> "DMSH | IntegerDMSH":
    """Read a checkpoint of either kind; see :func:`dmsh_model.checkpoint.load` (imported late, so that torch is)."""
    from dmsh_model import checkpoint
    from dmsh_model.integer import checkpoint as integer_checkpoint

    path = Path(path)
    if checkpoint.read_header(path).get("kind") == checkpoint.INTEGER:
        return integer_checkpoint.load(path)
    return checkpoint.load(path)
