"""Training a DMSH network: seeded, reproducible on one machine, resumable after any epoch."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmsh_model import checkpoint
from dmsh_model.backbone import load_pretrained
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_model.network import DMSH
from dmsh_model.training import loop as training_loop
from dmsh_model.training.centres import hash_centres
from dmsh_model.training.device import autocast, training_device
from dmsh_model.training.distributed import Ranks, joined, local_rank, started_by_torchrun
from dmsh_model.training.early_stopping import validation_split
from dmsh_model.training.loop import Epoch, Examples, Trainee, held_out_map
from dmsh_model.training.losses import Losses, total_loss
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.state import state_path
from dmsh_serving.errors import InputError
from dmsh_serving.files import sha256_of_file


@dataclass(frozen=True)
class Trained:
    """The trained network (eval mode), the record its checkpoint keeps, and mAP@all of the held-out queries."""

    model: DMSH
    record: dict[str, Any]
    map_all: float


def fit(
    config: HashConfig,
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    out: Path,
    *,
    pretrained: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train a network and write its checkpoint to the folder ``out``.

    After each epoch the state is kept beside ``out`` (see :mod:`dmsh_model.training.state`) until the checkpoint is
    written. The same arguments give the same weights on the same machine, interrupted or not.

    Args:
        config: the network; its ``num_classes`` is 0 (no classifier) or that of ``data``.
        data: images of ``config.image_size``.
        split_options: how they are split; only the training part is learnt from.
        options: how to train.
        out: the checkpoint folder.
        pretrained: a state dict of the same timm backbone to start from (.safetensors, .pt or .pth).
        resume: continue after the last finished epoch. The configuration and the data must be the same.
        overwrite: replace the checkpoint or the unfinished training at ``out``.
        on_epoch: called after every epoch, in the first process.

    Started by torchrun, every process calls this alike; see :mod:`dmsh_model.training.distributed`.

    Raises:
        InputError: ``config`` does not fit ``data`` (more bits than training images too), ``out`` is taken, the
            state is of another training, or a batch cannot be shared out to the processes.
        MissingError: the device that ``options`` names is not here.
        CheckError: a loss or a weight became NaN or infinite; the state of the epoch before is kept.
    """
    if config.num_classes not in (0, len(data.class_names)):
        raise InputError(f"config.num_classes = {config.num_classes}, but {data.source} has {len(data.class_names)}")
    if data.images.shape[1] != config.image_size:
        raise InputError(f"{data.source} has images of {data.images.shape[1]} pixels, the config {config.image_size}")
    checkpoint.check_target(out, overwrite=overwrite)
    split = split_images(data, split_options)
    if len(split.train) < 2:
        raise InputError(f"{data.source}: {len(split.train)} training images, the losses compare pairs")
    learnt = validation_split(split, options.validation_share, options.seed) if options.validation_share else split
    identity: dict[str, Any] = {
        "config": config.to_dict(),
        "options": dataclasses.asdict(options),
        "split": split_record(split_options, split),
        "data_sha256": data.sha256,
        "pretrained_sha256": sha256_of_file(pretrained) if pretrained else None,
    }
    if started_by_torchrun().count > 1:
        identity["processes"] = started_by_torchrun().count
    state = training_loop.unfinished(out, identity, resume=resume, overwrite=overwrite)
    if config.bits > len(learnt.train):
        raise InputError(
            f"{data.source}: {len(learnt.train)} training images cannot give {config.bits} bits a meaning of their "
            "own: fewer --bits, or more images"
        )
    started_by_torchrun().part_of(options.batch_size)
    device = training_device(options, local_rank())

    with training_loop.own_random_numbers_and_threads(options), joined(device) as ranks:
        torch.manual_seed(options.seed)
        model = DMSH(config)
        if pretrained:
            load_pretrained(model.backbone, checkpoint.read_tensors(pretrained))
        learner = _on(device, model, ranks)
        trainee = Trainee(
            learner,
            _losses(learner, config, len(data.class_names), options.mixed_precision, ranks),
            validation_map=(lambda: held_out_map(learner, data, learnt)) if options.validation_share else None,
            device=device,
        )
        examples = Examples(*map(torch.from_numpy, (data.images, data.labels, learnt.train)))
        best = training_loop.run(trainee, examples, options, state_path(out), identity, state, on_epoch, ranks=ranks)
        model.load_state_dict(learner.state_dict())
        model.eval()
        map_all = held_out_map(model, data, split)
        record = {**identity, "source": data.source, "classes": data.class_names, "map_all": map_all}
        if best:
            sizes = {"queries": len(learnt.query), "database": len(learnt.database)}
            record["validation"] = {**sizes, "best_epoch": best.epoch, "map_all": best.map_all}
        del record["config"]  # the checkpoint has it already
        if ranks.first:
            checkpoint.save(model, out, training=record, overwrite=overwrite)
            state_path(out).unlink()
        ranks.wait()
    return Trained(model, record, map_all)


def _on(device: torch.device, model: DMSH, ranks: Ranks) -> DMSH:
    """Return the network that learns: ``model`` itself, or what stands for it on a GPU."""
    if device.type == "cpu":
        return model
    learner = copy.deepcopy(model)
    if ranks.count > 1:
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    return learner.to(device)


class _WithScores(nn.Module):
    """Images -> logits and class scores, all that is learnt in one forward pass, as averaging gradients asks for."""

    def __init__(self, model: DMSH, mixed_precision: bool) -> None:
        super().__init__()
        self.model = model
        self.mixed_precision = mixed_precision

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        with autocast(pixels.device, self.mixed_precision):
            logits = self.model(pixels)
        logits = logits.to(torch.float32)
        return logits, self.model.classifier(torch.tanh(logits)) if self.model.classifier else None


def _losses(
    model: DMSH, config: HashConfig, classes: int, mixed_precision: bool, ranks: Ranks
) -> Callable[[Tensor, Tensor], Losses]:
    network = ranks.wrapped(_WithScores(model, mixed_precision))
    centres = torch.from_numpy(hash_centres(classes, config.bits)) if config.loss.centres else None

    def losses(pixels: Tensor, labels: Tensor) -> Losses:
        logits, scores = network(pixels)
        return total_loss(logits, labels, scores, config.loss, None if centres is None else centres.to(logits.device))

    return losses
