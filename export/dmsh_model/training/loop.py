"""The loop that every training shares: seeded epochs, one learning rate schedule, a state kept after each epoch."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.evaluation.coding import codes_of_rows
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_model.training.augmentation import augment
from dmsh_model.training.distributed import Ranks
from dmsh_model.training.early_stopping import Best, better, is_over
from dmsh_model.training.losses import Losses
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.state import TrainingState, read_state, state_path, write_state
from dmsh_serving.errors import CheckError, InputError

__all__ = [
    "Epoch",
    "Examples",
    "Trainee",
    "held_out_map",
    "learning_rate_at",
    "own_random_numbers_and_threads",
    "run",
    "unfinished",
]

_LARGEST_GRADIENT_NORM = 5.0
_TRUNK = "backbone."
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: its number from 1, of how many, and the mean of each loss over its steps.

    ``images`` were learnt from in it, by all processes. ``validation_map`` is mAP@all of the validation images after
    it, if there are any.
    """

    number: int
    of: int
    loss: float
    pairwise: float
    quantisation: float
    classification: float
    distillation: float
    balance: float
    centres: float
    images: int = 0
    validation_map: float | None = None

    def scalars(self) -> dict[str, float]:
        """Return what a log shows of it, by name."""
        parts = ("pairwise", "quantisation", "classification", "distillation", "balance", "centres")
        losses = {"loss/total": self.loss, **{f"loss/{part}": getattr(self, part) for part in parts}}
        return losses if self.validation_map is None else {**losses, "validation/map_all": self.validation_map}


@dataclass(frozen=True)
class Examples:
    """What is learnt from: images (N, H, W, 3) uint8, labels (N,) int64, and the rows (n,) int64 that may be seen."""

    images: Tensor
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Trainee:
    """What is trained, and how a step changes it.

    Attributes:
        model: its parameters, its state dict, and train mode.
        losses: augmented images (N, H, W, 3) float32, 0 to 255, and labels (N,) int64 -> the losses of a step.
        after_step: called when the parameters have changed.
        validation_map: mAP@all of validation images, asked for after each epoch; its best epoch's weights are kept.
        device: where the model is, and the losses want their images.
        into_training: puts the model into train mode.
    """

    model: nn.Module
    losses: Callable[[Tensor, Tensor], Losses]
    after_step: Callable[[], None] = lambda: None
    validation_map: Callable[[], float] | None = None
    device: torch.device = CPU
    into_training: Callable[[nn.Module], object] = nn.Module.train


def unfinished(out: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> TrainingState | None:
    """Return the state of the unfinished training of ``out`` if it is to be resumed.

    Raises:
        InputError: there is one and neither is asked for, there is none to resume, or it is of another training.
    """
    kept = state_path(out)
    if kept.exists() and not (resume or overwrite):
        raise InputError(f"{kept} holds an unfinished training: continue it with --resume, or --overwrite it")
    return read_state(kept, identity) if resume else None


def run(
    trainee: Trainee,
    examples: Examples,
    options: TrainingOptions,
    kept: Path,
    identity: dict[str, Any],
    state: TrainingState | None,
    on_epoch: Callable[[Epoch], None] | None,
    *,
    ranks: Ranks = Ranks(),
) -> Best | None:
    """Train for the epochs that ``state`` has not behind it; write the state of each to ``kept``.

    The model is left in eval mode, with the last epoch's weights or the best one's, which is returned.

    Raises:
        CheckError: a loss or a weight became NaN or infinite; the state of the epoch before is kept.
        InputError: the batch cannot be shared out to the processes, or the model has no backbone to slow down.
    """
    model = trainee.model
    optimiser = _optimiser(model, options)
    best = None
    if state:
        model.load_state_dict(state.model)
        optimiser.load_state_dict(state.optimiser)
        best = Best(**state.best) if state.best else None
    for epoch in range(state.epochs_done if state else 0, options.epochs):
        if is_over(best, epoch, options.patience):
            break
        finished = _train_one_epoch(trainee, optimiser, options, examples, epoch, ranks)
        ranks.average_statistics(model)
        _require_finite_weights(model, epoch)
        if trainee.validation_map:
            value = ranks.of_first(trainee.validation_map() if ranks.first else 0.0, trainee.device)
            best = better(best, epoch + 1, value, model)
            finished = dataclasses.replace(finished, validation_map=value)
        if ranks.first:
            done = best.to_dict() if best else None
            write_state(kept, TrainingState(identity, epoch + 1, model.state_dict(), optimiser.state_dict(), done))
            if on_epoch:
                on_epoch(finished)
    if best:
        model.load_state_dict(best.model)
    model.eval()
    return best


def _train_one_epoch(
    trainee: Trainee,
    optimiser: torch.optim.Optimizer,
    options: TrainingOptions,
    examples: Examples,
    epoch: int,
    ranks: Ranks,
) -> Epoch:
    # All random numbers of an epoch come from seed and epoch, so that resuming needs no generator's state.
    generator = torch.Generator().manual_seed((options.seed << 20) + epoch)
    batch_size = min(options.batch_size, len(examples.rows) - len(examples.rows) % ranks.count)
    ranks.part_of(batch_size)
    steps = len(examples.rows) // batch_size  # the rest would be a batch too small for BN; another epoch has it
    order = examples.rows[torch.randperm(len(examples.rows), generator=generator)]
    if not ranks.first:  # the order is shared; what happens to an image is its process's own
        generator.manual_seed((options.seed << 20) + epoch + (ranks.rank << 52))
    torch.manual_seed((options.seed << 20) + epoch + (ranks.rank << 52))  # for backbones with dropout
    trainee.into_training(trainee.model)
    sums = torch.zeros(len(dataclasses.fields(Losses)))
    for step in range(steps):
        chosen = order[step * batch_size : (step + 1) * batch_size][ranks.rank :: ranks.count]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(epoch + step / steps, options) * group.get("share", 1.0)
        images = augment(examples.images[chosen], options.augmentation, generator)
        losses = trainee.losses(images.to(trainee.device), examples.labels[chosen].to(trainee.device))
        if not torch.isfinite(losses.total):
            raise CheckError(
                f"the loss is {losses.total.item()} in epoch {epoch + 1}, step {step + 1} of {steps}: lower the "
                f"learning rate ({options.learning_rate})" + _what_is_kept(epoch)
            )
        optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), _LARGEST_GRADIENT_NORM)
        optimiser.step()
        trainee.after_step()
        sums += torch.stack(losses.parts()).cpu()
    means = ranks.mean((sums / steps).to(trainee.device))
    finished = Epoch(epoch + 1, options.epochs, *means.tolist())
    return dataclasses.replace(finished, images=steps * batch_size)


def learning_rate_at(epoch: float, options: TrainingOptions) -> float:
    """Return the learning rate at ``epoch`` (fractional, from 0): linear warm-up, then a cosine to zero."""
    warmup = min(options.warmup_epochs, options.epochs - 1)
    if epoch < warmup:
        return options.learning_rate * (epoch + 1) / (warmup + 1)
    progress = (epoch - warmup) / (options.epochs - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _optimiser(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    trunk_rate = options.trunk_rate
    named = list(model.named_parameters())
    trunk = [p for name, p in named if trunk_rate != 1 and name.startswith(_TRUNK)]
    if trunk_rate != 1 and not trunk:
        raise InputError(f"trunk_rate = {trunk_rate}: this network has no part named {_TRUNK[:-1]}, leave it out")
    rest = [p for name, p in named if trunk_rate == 1 or not name.startswith(_TRUNK)]
    return torch.optim.AdamW(
        [
            {"params": [p for p in part if (p.ndim > 1) == decays], "weight_decay": decay, "share": share}
            for part, share in ((rest, 1.0), (trunk, trunk_rate))
            if part
            for decays, decay in ((True, options.weight_decay), (False, 0.0))
        ],
        lr=options.learning_rate,
    )


def _require_finite_weights(model: nn.Module, epoch: int) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckError(f"{name} holds NaN or Inf after epoch {epoch + 1}" + _what_is_kept(epoch))


def _what_is_kept(epoch: int) -> str:
    return f"; the state after epoch {epoch} is kept" if epoch else "; nothing was written"


def held_out_map(model: DMSH | IntegerDMSH, data: LabelledImages, split: Split) -> float:
    """Return mAP@all of the split's queries against its database."""
    return mean_average_precision(
        codes_of_rows(model.codes, data.images, split.query),
        codes_of_rows(model.codes, data.images, split.database),
        data.labels[split.query],
        data.labels[split.database],
    )


@contextmanager
def own_random_numbers_and_threads(options: TrainingOptions) -> Iterator[None]:
    """Leave the caller's random state and thread count as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
