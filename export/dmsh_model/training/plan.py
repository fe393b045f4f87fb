"""What is settled before a training begins: its split, what makes it this training, and what its checkpoint records."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_model.network import DMSH
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.early_stopping import Best, validation_split
from dmsh_model.training.options import TrainingOptions
from dmsh_model.weights.read import Pretrained
from dmsh_serving.errors import InputError

__all__ = ["Plan", "Trained", "planned"]


@dataclass(frozen=True)
class Trained:
    """The trained network (eval mode), the record its checkpoint keeps, and mAP@all of the held-out queries."""

    model: DMSH
    record: dict[str, Any]
    map_all: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A training before its first step.

    Attributes:
        data: the images.
        split: split of the data; mAP is reported on its queries.
        learnt: what is learnt from; with validation images as its queries, if there are any.
        identity: config, options and SHA-256 of the data and the weights: what must be the same to resume.
    """

    data: LabelledImages
    split: Split
    learnt: Split
    identity: dict[str, Any]

    def require_enough_for(self, bits: int) -> None:
        """Raise :class:`InputError` if there are fewer training images than bits."""
        if bits > len(self.learnt.train):
            raise InputError(
                f"{self.data.source}: {len(self.learnt.train)} training images cannot give {bits} bits a meaning of "
                "their own: fewer --bits, or more images"
            )

    def record(self, map_all: float, best: Best | None) -> dict[str, Any]:
        """Return what the checkpoint keeps beside its config."""
        record = {**self.identity, "source": self.data.source, "classes": self.data.class_names, "map_all": map_all}
        if best:
            sizes = {"queries": len(self.learnt.query), "database": len(self.learnt.database)}
            record["validation"] = {**sizes, "best_epoch": best.epoch, "map_all": best.map_all}
        del record["config"]  # the checkpoint has it already
        return record


def planned(
    config: HashConfig,
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    out: Path,
    *,
    pretrained: Pretrained | None,
    overwrite: bool,
) -> Plan:
    """Check what a training is given, split the data, and return the plan.

    Raises:
        InputError: ``config`` does not fit ``data``, ``out`` is taken, or there are too few images.
    """
    if config.num_classes not in (0, len(data.class_names)):
        raise InputError(f"config.num_classes = {config.num_classes}, but {data.source} has {len(data.class_names)}")
    if data.images.shape[1] != config.image_size:
        raise InputError(f"{data.source} has images of {data.images.shape[1]} pixels, the config {config.image_size}")
    checkpoint.check_target(out, overwrite=overwrite)
    split = split_images(data, split_options)
    if len(split.train) < 2:
        raise InputError(f"{data.source}: {len(split.train)} training images, the losses compare pairs")
    share = options.validation_share
    identity: dict[str, Any] = {
        "config": config.to_dict(),
        "options": dataclasses.asdict(options),
        "split": split_record(split_options, split),
        "data_sha256": data.sha256,
        "pretrained_sha256": pretrained.sha256 if pretrained else None,
    }
    if started_by_torchrun().count > 1:
        identity["processes"] = started_by_torchrun().count
    return Plan(data, split, validation_split(split, share, options.seed) if share else split, identity)
