"""``dmsh-train fit``: train a network on labelled images."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dmsh_model.cli.data_option import CacheOption, DataArgument, read_labelled, refuse_split_options
from dmsh_model.cli.network_options import Network, NetworkFlags, Preprocessing, PreprocessingFlags
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
from dmsh_model.cli.progress import shown
from dmsh_model.cli.unlabelled import fit_without_labels
from dmsh_model.config import HashConfig, LossWeights
from dmsh_model.frozen.options import FrozenOptions
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.options import TrainingOptions
from dmsh_serving import console
from dmsh_serving.commands import Flags
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.cli.progress import Show
    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.training.plan import Trained
    from dmsh_model.weights.read import Pretrained

__all__ = ["fit"]

_FEW_CLASSES, _HUGE_CLASS = 3, 500
FROZEN, UNLABELLED = "With --freeze-backbone", "With --unlabelled"
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        help="Weights of the backbone: a .safetensors, .pt or .pth file, a package that `dmsh-train weights` "
        "lists, or timm:NAME, which may download."
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
        mixed_precision=option(
            "--mixed-precision", MACHINE, "On a GPU, compute the network in bfloat16 and the losses in FP32."
        ),
    ),
]
FrozenFlags = Annotated[
    FrozenOptions,
    Flags(
        noise=option("--noise", FROZEN, "Deviation of the noise that is added to the features, whose own is 1."),
        unfreeze_after=option(
            "--unfreeze-after", FROZEN, "Train the whole network after this many epochs; 0 keeps the backbone frozen."
        ),
        unfrozen_rate=option(
            "--unfrozen-rate", FROZEN, "Learning rate of the whole network, as a share of the head's."
        ),
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
    preprocessing: PreprocessingFlags = Preprocessing(),
    pretrained: PretrainedOption = None,
    freeze_backbone: Annotated[
        bool,
        typer.Option(
            "--freeze-backbone",
            help="Keep the pretrained backbone as it is: compute its features once, train the head on them.",
        ),
    ] = False,
    frozen: FrozenFlags = FrozenOptions(),
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="Learn from a folder of images without their classes (PCA and ITQ on the features of --pretrained).",
        ),
    ] = False,
    sample: Annotated[
        int, typer.Option(help="Most images that --unlabelled learns from.", rich_help_panel=UNLABELLED)
    ] = 20_000,
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
    """Train a network on labelled images and write its checkpoint. The same command gives the same weights."""
    counts = {"queries_per_class": queries_per_class, "train_per_class": train_per_class}
    given: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    usual = (LossWeights(), _TRAINING.augmentation, FrozenOptions(), _of_machine(training))
    learnt = (losses.pairwise, losses.quantisation, losses.classification, losses.balance, losses.centres)
    by_label = not unlabelled
    conflicts = (
        (
            unlabelled and (given or log or resume or (losses, augmentation, frozen, training) != usual),
            "--unlabelled learns in one pass and from no labels: it takes --seed, --threads and --device, no other "
            "option of training",
        ),
        (by_label and not any(learnt), "the weights of all losses are 0: there is nothing to learn, give one of them"),
        (
            by_label and freeze_backbone and not pretrained,
            "--freeze-backbone keeps trained weights: give them as --pretrained",
        ),
        (
            by_label and frozen != FrozenOptions() and not freeze_backbone,
            "--noise, --unfreeze-after and --unfrozen-rate are for --freeze-backbone, give it too",
        ),
    )
    for met, conflict in conflicts:
        if met:
            raise InputError(conflict)
    fields = network.fields(pretrained) | preprocessing.fields()
    if unlabelled:
        fit_without_labels(
            data,
            out,
            fields,
            pretrained,
            training,
            sample=sample,
            cache=cache,
            overwrite=overwrite,
            skip_bad=skip_bad,
            json=json,
        )
        return
    # Checked before torch is imported and the images are read; num_classes is known only then.
    HashConfig(**fields)
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.training import log as training_log
    from dmsh_model.weights.read import read_pretrained

    if log:
        training_log.require_tensorboard()
    split = SplitOptions(seed=training.seed, **given)
    weights = read_pretrained(pretrained, fields["backbone"]) if pretrained else None
    config = HashConfig(**(weights.preprocessing if weights else _of_data(data)) | fields)
    labelled = read_labelled(data, config.image_size, config.framing, skip_bad, cache)
    refuse_split_options(labelled, {f"--{name.replace('_', '-')}": count for name, count in counts.items()})
    _ask_whether_these_are_classes(labelled)
    config = dataclasses.replace(config, num_classes=len(labelled.class_names), loss=losses)
    task = _Task(config, labelled, split, dataclasses.replace(training, augmentation=augmentation), out)
    with shown(training.epochs, log) as show:
        if freeze_backbone and weights:
            trained = _fit_frozen(task, show, weights, frozen, cache, resume, overwrite)
        else:
            trained = _fit_whole(task, show, weights, resume, overwrite)
    if started_by_torchrun().first:
        _print(out, data, config, trained.record, len(labelled.bad))
        console.write_json(json, {"out": str(out), "bad": labelled.bad, **trained.record})


class _Task(NamedTuple):
    config: HashConfig
    data: "LabelledImages"
    split: "SplitOptions"
    options: TrainingOptions
    out: Path


def _fit_frozen(
    task: _Task,
    show: "Show",
    weights: "Pretrained",
    frozen: FrozenOptions,
    cache: Path | None,
    resume: bool,
    overwrite: bool,
) -> "Trained":
    from dmsh_model.frozen.run import fit_head

    return fit_head(
        *task,
        weights,
        frozen=frozen,
        cache=cache,
        resume=resume,
        overwrite=overwrite,
        on_taps=show.features,
        on_epoch=show.epoch,
        on_note=console.console().print,
    )


def _fit_whole(task: _Task, show: "Show", weights: "Pretrained | None", resume: bool, overwrite: bool) -> "Trained":
    from dmsh_model.training import run

    return run.fit(*task, pretrained=weights, resume=resume, overwrite=overwrite, on_epoch=show.epoch)


def _of_data(data: str) -> dict[str, Any]:
    """Return mean and std, fields of the config, of a network that learns from nothing."""
    from dmsh_model.data.load import MNIST_5K, MNIST_5K_MEAN, MNIST_5K_STD

    return {"mean": MNIST_5K_MEAN, "std": MNIST_5K_STD} if data == MNIST_5K else {}


def _of_machine(training: TrainingOptions) -> TrainingOptions:
    """Return the defaults but for what is not about learning from labels."""
    return dataclasses.replace(_TRAINING, seed=training.seed, threads=training.threads, device=training.device)


def _ask_whether_these_are_classes(labelled: "LabelledImages") -> None:
    """Ask about few and huge classes: folders of two vendors or years look like classes and mean none."""
    if labelled.labels.ndim != 1 or len(labelled.class_names) > _FEW_CLASSES or not started_by_torchrun().first:
        return
    counts = {name: int((labelled.labels == label).sum()) for label, name in enumerate(labelled.class_names)}
    if min(counts.values()) >= _HUGE_CLASS:
        classes = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
        console.console().print(
            f"note: only {len(counts)} classes: {classes}. Are they what a search should tell apart? If not, give one "
            "folder per class, or --unlabelled."
        )


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
