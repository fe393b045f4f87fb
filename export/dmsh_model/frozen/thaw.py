"""The whole network after its head: a low rate, and the trunk's BN as it was trained."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmsh_model.frozen.options import FrozenOptions
from dmsh_model.network import DMSH, Images, laterals_of
from dmsh_model.training import loop as training_loop
from dmsh_model.training.centres import hash_centres
from dmsh_model.training.device import autocast, training_device
from dmsh_model.training.distributed import Ranks
from dmsh_model.training.early_stopping import Best
from dmsh_model.training.loop import Epoch, Examples, Trainee, held_out_map
from dmsh_model.training.losses import Losses, total_loss
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.plan import Plan
from dmsh_model.training.state import state_path

__all__ = ["normalise_positions", "thaw"]

_IMAGES_FOR_STATISTICS = 512
_BATCH = 64


def thaw(
    model: DMSH,
    plan: Plan,
    options: TrainingOptions,
    out: Path,
    frozen: FrozenOptions,
    *,
    resume: bool,
    overwrite: bool,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[Best | None, float]:
    """Train the whole of ``model`` for the epochs after ``frozen.unfreeze_after``; return the best and mAP@all.

    BN of the trunk stays in eval mode: its statistics are of far more images than a batch has. BN of the laterals has
    normalised pooled values; it is given the variance of positions first, which changes nothing of what it computes.
    """
    device = training_device(options)
    later = dataclasses.replace(
        options,
        epochs=options.epochs - frozen.unfreeze_after,
        learning_rate=options.learning_rate * frozen.unfrozen_rate,
        warmup_epochs=0,
    )
    if not resume:
        normalise_positions(model, plan.data.images[plan.learnt.train[:_IMAGES_FOR_STATISTICS]])
    model.to(device)
    wanted = model.config.loss.centres
    centres = torch.from_numpy(hash_centres(len(plan.data.class_names), model.config.bits)) if wanted else None

    def losses(pixels: Tensor, labels: Tensor) -> Losses:
        with autocast(device, options.mixed_precision):
            logits = model(pixels)
        logits = logits.to(torch.float32)
        scores = model.classifier(torch.tanh(logits)) if model.classifier else None
        return total_loss(logits, labels, scores, model.config.loss, None if centres is None else centres.to(device))

    trainee = Trainee(
        model,
        losses,
        validation_map=(lambda: held_out_map(model, plan.data, plan.learnt)) if options.validation_share else None,
        device=device,
        into_training=_but_for_the_trunks_norms,
    )
    identity: dict[str, Any] = {**plan.identity, "unfrozen": dataclasses.asdict(later)}
    best = training_loop.run(
        trainee,
        Examples(*map(torch.from_numpy, (plan.data.images, plan.data.labels, plan.learnt.train))),
        later,
        state_path(out),
        identity,
        training_loop.unfinished(out, identity, resume=resume, overwrite=overwrite),
        (lambda epoch: on_epoch(_numbered(epoch, frozen.unfreeze_after))) if on_epoch else None,
        ranks=Ranks(),
    )
    model.to("cpu")
    return best, held_out_map(model, plan.data, plan.split)


@torch.no_grad()
def normalise_positions(model: DMSH, images: Images) -> None:
    """Give the laterals' BN the variance of positions of ``images``, and a scale that leaves its result as it was."""
    model.eval()
    laterals = laterals_of(model)
    sums = [torch.zeros(2, lateral.norm.num_features, dtype=torch.float64) for lateral in laterals]
    count = [0] * len(laterals)
    for start in range(0, len(images), _BATCH):
        maps = model.features(torch.from_numpy(images[start : start + _BATCH]))
        for index, (lateral, feature) in enumerate(zip(laterals, maps, strict=True)):
            values = lateral.conv(feature).double()
            sums[index] += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
            count[index] += values.numel() // values.shape[1]
    for lateral, (total, squares), positions in zip(laterals, sums, count, strict=True):
        norm = lateral.norm
        before, mean = norm.running_var, norm.running_mean
        if before is None or mean is None:
            continue
        variance = (squares / positions - (total / positions).square()).clamp(min=0).to(before.dtype)
        norm.weight.mul_(torch.sqrt((variance + norm.eps) / (before + norm.eps)))
        before.copy_(variance)


def _but_for_the_trunks_norms(model: nn.Module) -> None:
    model.train()
    for name, module in model.named_modules():
        if name.startswith("backbone.") and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _numbered(epoch: Epoch, before: int) -> Epoch:
    return dataclasses.replace(epoch, number=epoch.number + before, of=epoch.of + before)
