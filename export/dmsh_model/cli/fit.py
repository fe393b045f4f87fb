"""``dmsh-train fit``: train a network on labelled images."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsh_model.cli.data_option import CacheOption, DataArgument, read_labelled, refuse_split_options
from dmsh_model.cli.options import (
    LOSS_OPTIONS,
    LOSSES,
    MACHINE,
    SCHEDULE,
    SCHEDULE_OPTIONS,
    SPLIT,
    AugmentationFlags,
    OutOption,
    OverwriteOption,
    ResumeOption,
    option,
)
from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD, HashConfig, LossWeights
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.options import TrainingOptions
from dmsh_serving import console
from dmsh_serving.commands import Flags
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.training.loop import Epoch

__all__ = ["Network", "fit"]

_WIDTHS = "Widths of the network"


@dataclass(frozen=True)
class Network:
    """The fields of :class:`~dmsh_model.config.HashConfig` that the user chooses; the images decide the others."""

    bits: int = 64
    backbone: str = "vgg_small"
    image_size: int = 32
    lateral_features: int = 64
    fusion_features: int = 128


NetworkFlags = Annotated[
    Network,
    Flags(
        bits=option("--bits", None, "Bits per code."),
        backbone=option("--backbone", None, "vgg_small, or any timm model with feature levels."),
        image_size=option("--image-size", None, "Side of an image, in pixels."),
        lateral_features=option("--lateral-features", _WIDTHS, "Features per scale."),
        fusion_features=option("--fusion-features", _WIDTHS, "Features of the fusion layer."),
    ),
]
TrainingFlags = Annotated[
    TrainingOptions,
    Flags(
        **SCHEDULE_OPTIONS,
        trunk_rate=option("--trunk-rate", SCHEDULE, "Learning rate of the backbone, as a share of the rest's."),
        validation_share=option(
            "--validation-share",
            SCHEDULE,
            "Share of the training images that chooses the best epoch, whose weights are kept; 0 keeps the last.",
        ),
        patience=option(
            "--patience", SCHEDULE, "Stop after this many epochs without a better validation mAP; 0 never stops."
        ),
        device=option("--device", MACHINE, "cpu or cuda."),
        mixed_precision=option("--mixed-precision", MACHINE, "Compute in bfloat16 if that is safe; on a GPU."),
    ),
]
LossFlags = Annotated[
    LossWeights,
    Flags(
        **LOSS_OPTIONS,
        centres=option("--centres", LOSSES, "A code is near the code of its class (CSQ); use 1 with --pairwise 0."),
    ),
]
_TRAINING = TrainingOptions()


def fit(
    data: DataArgument,
    out: OutOption,
    network: NetworkFlags = Network(),
    pretrained: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors, .pt, .pth.")] = None,
    queries_per_class: Annotated[
        int | None, typer.Option(help="Held-out queries per class.  [default: 50]", rich_help_panel=SPLIT)
    ] = None,
    train_per_class: Annotated[
        int | None, typer.Option(help="Most training images per class.  [default: 200]", rich_help_panel=SPLIT)
    ] = None,
    training: TrainingFlags = _TRAINING,
    losses: LossFlags = LossWeights(),
    augmentation: AugmentationFlags = _TRAINING.augmentation,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Folder for TensorBoard's event files; needs the package tensorboard.", rich_help_panel=MACHINE
        ),
    ] = None,
    cache: CacheOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Train a network on labelled images and write its checkpoint; the same command gives the same weights."""
    if not any((losses.pairwise, losses.quantisation, losses.classification, losses.balance, losses.centres)):
        raise InputError("the weights of all losses are 0: there is nothing to learn, give one of them")
    # Checked before torch is imported and the images are read; num_classes is known only then.
    HashConfig(**dataclasses.asdict(network))
    from dmsh_model.data import load as images_of
    from dmsh_model.training import log as training_log
    from dmsh_model.training import run as training_run
    from dmsh_model.weights.read import read_pretrained

    if log:
        training_log.require_tensorboard()
    counts = {"queries_per_class": queries_per_class, "train_per_class": train_per_class}
    given: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    split = dataclasses.replace(images_of.SplitOptions(seed=training.seed), **given)
    weights = read_pretrained(str(pretrained), network.backbone) if pretrained else None
    labelled = read_labelled(data, network.image_size, skip_bad, cache)
    refuse_split_options(labelled, {f"--{name.replace('_', '-')}": count for name, count in counts.items()})
    digits = data == images_of.MNIST_5K
    config = HashConfig(
        **dataclasses.asdict(network),
        mean=images_of.MNIST_5K_MEAN if digits else IMAGENET_MEAN,
        std=images_of.MNIST_5K_STD if digits else IMAGENET_STD,
        num_classes=len(labelled.class_names),
        loss=losses,
    )
    options = dataclasses.replace(training, augmentation=augmentation)
    with _shown(options.epochs, log) as show:
        trained = training_run.fit(
            config,
            labelled,
            split,
            options,
            out,
            pretrained=weights,
            resume=resume,
            overwrite=overwrite,
            on_epoch=show,
        )
    if started_by_torchrun().first:
        _print(out, data, config, trained.record, len(labelled.bad))
        console.write_json(json, {"out": str(out), "bad": labelled.bad, **trained.record})


@contextlib.contextmanager
def _shown(epochs: int, log: Path | None) -> Iterator[Callable[["Epoch"], None]]:
    """Yield what shows an epoch as progress and in the ``log``; in the first process alone."""
    from dmsh_model.training import log as training_log

    first = started_by_torchrun().first
    with contextlib.ExitStack() as stack:
        write_log = stack.enter_context(training_log.event_files(log)) if log and first else None
        display = stack.enter_context(console.progress())
        task = display.add_task("training", total=epochs, visible=first)

        def show(epoch: "Epoch") -> None:
            display.update(task, completed=epoch.number, description=f"training, loss {epoch.loss:.4f}")
            if write_log:
                write_log(epoch)

        yield show


def _print(out: Path, data: str, config: HashConfig, record: dict[str, Any], bad: int) -> None:
    sizes, best = record["split"], record.get("validation")
    rows = [
        ["training images", str(sizes["train"])],
        ["queries", str(sizes["queries"])],
        ["database", str(sizes["database"])],
        ["unreadable images left out", str(bad)],
    ]
    if best:
        rows.append(["best epoch, by validation mAP", f"{best['best_epoch']} ({best['map_all']:.4f})"])
    rows.append(["mAP@all", f"{record['map_all']:.4f}"])
    console.print_table(f"{out}: {config.backbone}, {config.bits} bits, trained on {data}", ["measure", "value"], rows)
