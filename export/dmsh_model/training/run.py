"""Training a DMSH network: seeded, reproducible on one machine, resumable after any epoch."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.split import SplitOptions
from dmsh_model.network import DMSH
from dmsh_model.training import loop as training_loop
from dmsh_model.training.centres import hash_centres
from dmsh_model.training.device import autocast, training_device
from dmsh_model.training.distributed import Ranks, joined, local_rank, started_by_torchrun
from dmsh_model.training.loop import Epoch, Examples, Trainee, held_out_map
from dmsh_model.training.losses import Losses, total_loss
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.plan import Trained, planned
from dmsh_model.training.state import state_path
from dmsh_model.weights.fill import fill
from dmsh_model.weights.read import Pretrained

__all__ = ["fit"]


def fit(
    config: HashConfig,
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    out: Path,
    *,
    pretrained: Pretrained | None = None,
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
        pretrained: weights of the backbone to start from; the config's mean and std should be theirs.
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
    plan = planned(config, data, split_options, options, out, pretrained=pretrained, overwrite=overwrite)
    state = training_loop.unfinished(out, plan.identity, resume=resume, overwrite=overwrite)
    plan.require_enough_for(config.bits)
    learnt = plan.learnt
    started_by_torchrun().part_of(options.batch_size)
    device = training_device(options, local_rank())

    with training_loop.own_random_numbers_and_threads(options), joined(device) as ranks:
        torch.manual_seed(options.seed)
        model = DMSH(config)
        if pretrained:
            fill(model.backbone, pretrained.tensors, pretrained.source)
        learner = _on(device, model, ranks)
        trainee = Trainee(
            learner,
            _losses(learner, config, len(data.class_names), options.mixed_precision, ranks),
            validation_map=(lambda: held_out_map(learner, data, learnt)) if options.validation_share else None,
            device=device,
        )
        examples = Examples(*map(torch.from_numpy, (data.images, data.labels, learnt.train)))
        best = training_loop.run(
            trainee, examples, options, state_path(out), plan.identity, state, on_epoch, ranks=ranks
        )
        model.load_state_dict(learner.state_dict())
        model.eval()
        map_all = held_out_map(model, data, plan.split)
        record = plan.record(map_all, best)
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
