"""The Deep Multi-Scale Hashing (DMSH) network in PyTorch: definition, training, evaluation, checkpoints.

model = dmsh_model.load("checkpoint")
codes = model.codes(images)             # uint8 (N, H, W, 3) -> uint8 (N, ceil(K/8))
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_model.config import HashConfig, LossWeights

if TYPE_CHECKING:
    from dmsh_model.network import DMSH

__all__ = ["HashConfig", "LossWeights", "load"]


def load(path: str | Path) -> "DMSH":
    """Read a checkpoint; see :func:`dmsh_model.checkpoint.load` (imported late, so that torch is)."""
    from dmsh_model import checkpoint

    return checkpoint.load(Path(path))
