"""Training on a frozen trunk: pooled taps once, then the head on them, then perhaps the whole network at a low rate."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import Indices, LabelledImages, Split
from dmsh_model.data.split import SplitOptions
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.frozen.head import PooledHead, standardisation
from dmsh_model.frozen.options import FrozenOptions
from dmsh_model.frozen.taps import PooledTrunk
from dmsh_model.frozen.thaw import thaw
from dmsh_model.network import DMSH
from dmsh_model.training import loop as training_loop
from dmsh_model.training.centres import hash_centres
from dmsh_model.training.device import training_device
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.early_stopping import Best
from dmsh_model.training.loop import Epoch, Examples, Trainee
from dmsh_model.training.losses import Losses
from dmsh_model.training.options import UNCHANGED, TrainingOptions
from dmsh_model.training.plan import Plan, Trained, planned
from dmsh_model.training.state import state_path
from dmsh_model.weights.fill import fill
from dmsh_model.weights.read import Pretrained
from dmsh_serving.codes import Codes, pack
from dmsh_serving.errors import InputError

__all__ = ["fit_head"]


def fit_head(
    config: HashConfig,
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    out: Path,
    pretrained: Pretrained,
    *,
    frozen: FrozenOptions = FrozenOptions(),
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_taps: Callable[[int, int], object] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_note: Callable[[str], object] = lambda _: None,
) -> Trained:
    """Train the head of a network on the pooled taps of its frozen trunk, and write its checkpoint to ``out``.

    The same arguments give the same weights on the same machine, interrupted or not.

    Args:
        config: the network, with average pooling and no lateral activation.
        data: images of ``config.image_size``.
        split_options: how they are split; only the training part is learnt from.
        options: how to train; ``augmentation``, ``trunk_rate`` and ``mixed_precision`` are for the
            unfrozen network.
        out: the checkpoint folder.
        pretrained: weights of the trunk.
        frozen: how to train on a frozen trunk.
        cache: a folder that keeps the taps; None keeps them beside ``out`` until the checkpoint is written.
        resume: continue after the last finished epoch. The configuration and the data must be the same.
        overwrite: replace the checkpoint or the unfinished training at ``out``.
        on_taps: called with (images done, images in all) while their taps are computed.
        on_epoch: called after every epoch.
        on_note: called with a line for people.

    Raises:
        InputError: what :func:`dmsh_model.training.run.fit` refuses; a network whose head needs whole feature maps;
            images that are all alike; weights of another network.
        CheckError: a loss, a weight or a feature became NaN or infinite.
    """
    if started_by_torchrun().count > 1:
        raise InputError("a frozen trunk trains its head in one process: start it without torchrun")
    if frozen.unfreeze_after >= options.epochs:
        raise InputError(f"unfreeze_after = {frozen.unfreeze_after} leaves none of {options.epochs} epochs: give more")
    plan = planned(config, data, split_options, options, out, pretrained=pretrained, overwrite=overwrite)
    plan.identity["frozen"] = dataclasses.asdict(frozen)
    plan.require_enough_for(config.bits)
    if not resume:
        training_loop.unfinished(out, plan.identity, resume=False, overwrite=overwrite)
    kept_taps = cache or out.with_name(out.name + ".taps")
    with training_loop.own_random_numbers_and_threads(options):
        torch.manual_seed(options.seed)
        model = DMSH(config)
        fill(model.backbone, pretrained.tensors, pretrained.source)
        thawing = resume and frozen.unfreeze_after > 0 and state_path(out).exists()
        best = None
        if not thawing:
            device = training_device(options)
            trunk = PooledTrunk(model, kept_taps, device=device, on_note=on_note)
            taps = torch.from_numpy(trunk.of_images(data.images, on_taps))
            torch.set_num_threads(1)  # the head is too small to share out
            best, map_all = _train_head(model, taps, plan, options, out, frozen, resume, overwrite, on_epoch)
        if frozen.unfreeze_after:
            torch.set_num_threads(options.threads)
            best, map_all = thaw(
                model, plan, options, out, frozen, resume=thawing, overwrite=overwrite, on_epoch=on_epoch
            )
        model.eval()
        record = plan.record(map_all, best)
        checkpoint.save(model, out, training=record, overwrite=overwrite)
    for left in (state_path(out), state_path(_of_head(out))):
        left.unlink(missing_ok=True)
    if cache is None:
        _remove_taps(kept_taps)
    return Trained(model, record, map_all)


def _train_head(
    model: DMSH,
    taps: Tensor,
    plan: Plan,
    options: TrainingOptions,
    out: Path,
    frozen: FrozenOptions,
    resume: bool,
    overwrite: bool,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[Best | None, float]:
    """Train the head and leave it in ``model``; return the best epoch and mAP@all of the queries."""
    options = dataclasses.replace(
        options, epochs=frozen.unfreeze_after or options.epochs, augmentation=UNCHANGED, trunk_rate=1.0
    )
    mean, deviation = standardisation(taps[plan.learnt.train])
    taps = ((taps.double() - mean) / deviation).to(torch.float32)
    head = PooledHead(model)
    wanted = model.config.loss.centres
    centres = torch.from_numpy(hash_centres(len(plan.data.class_names), model.config.bits)) if wanted else None

    def losses(batch: Tensor, labels: Tensor) -> Losses:
        return head.losses(batch, labels, frozen.noise, centres)

    def map_of(split: Split) -> float:
        def codes(rows: Indices) -> Codes:
            return _codes(head, taps[rows])

        labels = plan.data.labels
        return mean_average_precision(
            codes(split.query), codes(split.database), labels[split.query], labels[split.database]
        )

    trainee = Trainee(head, losses, validation_map=(lambda: map_of(plan.learnt)) if options.validation_share else None)
    identity: dict[str, Any] = {**plan.identity, "options": dataclasses.asdict(options)}
    state = training_loop.unfinished(
        _of_head(out), identity, resume=resume and state_path(_of_head(out)).exists(), overwrite=overwrite
    )
    best = training_loop.run(
        trainee,
        Examples(taps, torch.from_numpy(plan.data.labels), torch.from_numpy(plan.learnt.train)),
        options,
        state_path(_of_head(out)),
        identity,
        state,
        on_epoch,
    )
    map_all = map_of(plan.split)
    head.take_standardised(mean, deviation)
    return best, map_all


@torch.inference_mode()
def _codes(head: PooledHead, taps: Tensor) -> Codes:
    head.eval()
    return pack(np.asarray(head(taps).numpy()))


def _of_head(out: Path) -> Path:
    """Return the name that the state of the head's own training has: it ends before that of the whole network."""
    return out.with_name(out.name + ".head")


def _remove_taps(folder: Path) -> None:
    """Remove what :class:`PooledTrunk` keeps in ``folder``, and nothing else."""
    for kept in folder.glob("taps-*/*.npy"):
        kept.unlink()
    for empty in (*folder.glob("taps-*"), folder):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
