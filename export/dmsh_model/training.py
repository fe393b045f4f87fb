"""Training a DMSH network: seeded, reproducible on one machine, resumable after any epoch."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmsh_model import checkpoint
from dmsh_model.augmentation import augment
from dmsh_model.backbone import load_pretrained
from dmsh_model.config import HashConfig
from dmsh_model.data import LabelledImages, Split, SplitOptions, split_images, split_record
from dmsh_model.evaluation import mean_average_precision
from dmsh_model.losses import total_loss
from dmsh_model.network import DMSH
from dmsh_model.options import TrainingOptions
from dmsh_model.training_state import TrainingState, read_state, state_path, write_state
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.files import sha256_of_file

_LARGEST_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: its number from 1, of how many, and the mean of each loss over its steps."""

    number: int
    of: int
    loss: float
    pairwise: float
    quantisation: float
    classification: float


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

    After each epoch the state is kept beside ``out`` (see :mod:`dmsh_model.training_state`) until the checkpoint is
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
        on_epoch: called after every epoch.

    Raises:
        InputError: ``config`` does not fit ``data``, ``out`` is taken, or the state is of another training.
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
    kept = state_path(out)
    if kept.exists() and not (resume or overwrite):
        raise InputError(f"{kept} holds an unfinished training: continue it with --resume, or --overwrite it")
    identity = {
        "config": config.to_dict(),
        "options": dataclasses.asdict(options),
        "split": split_record(split_options, split),
        "data_sha256": data.sha256,
        "pretrained_sha256": sha256_of_file(pretrained) if pretrained else None,
    }
    state = read_state(kept, identity) if resume else None

    with _own_random_numbers_and_threads(options):
        torch.manual_seed(options.seed)
        model = DMSH(config)
        if pretrained:
            load_pretrained(model.backbone, checkpoint.read_tensors(pretrained))
        optimiser = _optimiser(model, options)
        if state:
            model.load_state_dict(state.model)
            optimiser.load_state_dict(state.optimiser)
        images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        for epoch in range(state.epochs_done if state else 0, options.epochs):
            finished = _train_one_epoch(model, optimiser, options, images, labels, torch.from_numpy(split.train), epoch)
            _require_finite_weights(model, epoch)
            write_state(kept, TrainingState(identity, epoch + 1, model.state_dict(), optimiser.state_dict()))
            if on_epoch:
                on_epoch(finished)
        model.eval()
        map_all = _map_all(model, data, split)
    record = {**identity, "source": data.source, "classes": data.class_names, "map_all": map_all}
    del record["config"]  # the checkpoint has it already
    checkpoint.save(model, out, training=record, overwrite=overwrite)
    kept.unlink()
    return Trained(model, record, map_all)


def _train_one_epoch(
    model: DMSH,
    optimiser: torch.optim.Optimizer,
    options: TrainingOptions,
    images: Tensor,
    labels: Tensor,
    train: Tensor,
    epoch: int,
) -> Epoch:
    # All random numbers of an epoch come from seed and epoch, so that resuming needs no generator's state.
    generator = torch.Generator().manual_seed((options.seed << 20) + epoch)
    torch.manual_seed((options.seed << 20) + epoch)  # for backbones with dropout
    batch_size = min(options.batch_size, len(train))
    steps = len(train) // batch_size  # the rest would be a batch too small for BN; another epoch has it
    order = train[torch.randperm(len(train), generator=generator)]
    model.train()
    sums = torch.zeros(4)
    for step in range(steps):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(epoch + step / steps, options)
        logits = model(augment(images[chosen], options.augmentation, generator))
        scores = model.classifier(torch.tanh(logits)) if model.classifier else None
        losses = total_loss(logits, labels[chosen], scores, model.config.loss)
        if not torch.isfinite(losses.total):
            raise CheckError(
                f"the loss is {losses.total.item()} in epoch {epoch + 1}, step {step + 1} of {steps}: lower the "
                f"learning rate ({options.learning_rate})" + _what_is_kept(epoch)
            )
        optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT_NORM)
        optimiser.step()
        sums += torch.stack([losses.total, losses.pairwise, losses.quantisation, losses.classification]).detach()
    return Epoch(epoch + 1, options.epochs, *(sums / steps).tolist())


def learning_rate_at(epoch: float, options: TrainingOptions) -> float:
    """Return the learning rate at ``epoch`` (fractional, from 0): linear warm-up, then a cosine to zero."""
    warmup = min(options.warmup_epochs, options.epochs - 1)
    if epoch < warmup:
        return options.learning_rate * (epoch + 1) / (warmup + 1)
    progress = (epoch - warmup) / (options.epochs - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _optimiser(model: DMSH, options: TrainingOptions) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )


def _require_finite_weights(model: DMSH, epoch: int) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckError(f"{name} holds NaN or Inf after epoch {epoch + 1}" + _what_is_kept(epoch))


def _what_is_kept(epoch: int) -> str:
    return f"; the state after epoch {epoch} is kept" if epoch else "; nothing was written"


def _map_all(model: DMSH, data: LabelledImages, split: Split) -> float:
    return mean_average_precision(
        model.codes(data.images[split.query]),
        model.codes(data.images[split.database]),
        data.labels[split.query],
        data.labels[split.database],
    )


@contextmanager
def _own_random_numbers_and_threads(options: TrainingOptions) -> Iterator[None]:
    """Leave the caller's random state and thread count as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
