"""``dmsh-train fit``: train a network, or fine-tune an integer one."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dmsh_model.cli.data_option import CacheOption, DataArgument, read_labelled, refuse_split_options
from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD, HashConfig, LossWeights
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.options import FINE_TUNING, Augmentation, TrainingOptions
from dmsh_model.training.refinements import Refinements
from dmsh_serving import console
from dmsh_serving.errors import InputError

_TRAINING, _WEIGHTS, _REFINEMENTS = TrainingOptions(), LossWeights(), Refinements()
_AS_TAUGHT = "; with --integer as the teacher's"
_FIXED_BY_THE_CHECKPOINT = ("bits", "backbone", "image_size", "lateral_features", "fusion_features", "pretrained")
_FOR_FLOAT_TRAINING = (
    *("trunk_rate", "validation_share", "patience", "device", "mixed_precision", "log"),
    *("centres",),
)


def _default(what: str, field: str) -> str:
    return f"{what}  [default: {getattr(_TRAINING, field):g}; with --integer {getattr(FINE_TUNING, field):g}]"


def _augmentation(what: str, field: str) -> str:
    return f"{what}  [default: {getattr(_TRAINING.augmentation, field):g}; with --integer 0]"


def _weight(loss: str) -> str:
    return f"Weight of the {loss} loss.  [default: {getattr(_WEIGHTS, loss):g}; with --integer 0]"


def fit(
    context: typer.Context,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    integer: Annotated[
        Path | None, typer.Option(help="Fine-tune this integer checkpoint, in its own arithmetic; needs --teacher.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="The float checkpoint that --integer was made from: whose codes to follow.")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a code.")] = 64,
    backbone: Annotated[str, typer.Option(help="vgg_small, or any timm model with feature levels.")] = "vgg_small",
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 32,
    lateral_features: Annotated[int, typer.Option(help="Width of each scale.")] = 64,
    fusion_features: Annotated[int, typer.Option(help="Width of the fusion layer.")] = 128,
    pretrained: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors, .pt, .pth.")] = None,
    queries_per_class: Annotated[
        int | None, typer.Option(help=f"Held-out queries of each class.  [default: 50{_AS_TAUGHT}]")
    ] = None,
    train_per_class: Annotated[
        int | None, typer.Option(help=f"At most so many training images of each class.  [default: 200{_AS_TAUGHT}]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=_default("Passes over the training images.", "epochs"))] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = _TRAINING.batch_size,
    learning_rate: Annotated[float | None, typer.Option(help=_default("At its peak.", "learning_rate"))] = None,
    weight_decay: Annotated[float | None, typer.Option(help=_default("Of weight matrices.", "weight_decay"))] = None,
    pairwise: Annotated[float | None, typer.Option(help=_weight("pairwise"))] = None,
    quantisation: Annotated[float | None, typer.Option(help=_weight("quantisation"))] = None,
    classification: Annotated[float | None, typer.Option(help=_weight("classification"))] = None,
    balance: Annotated[float, typer.Option(help="Weight of the loss of bits that are mostly 0 or mostly 1.")] = 0.0,
    centres: Annotated[
        float, typer.Option(help="Weight of the distance from a code of each class's own (CSQ); 1 with --pairwise 0.")
    ] = 0.0,
    imbalance: Annotated[
        float, typer.Option(help="From 0, all pairs count alike, to 1, similar pairs as much as dissimilar ones.")
    ] = 0.0,
    shift: Annotated[float | None, typer.Option(help=_augmentation("Random shift, pixels.", "shift_pixels"))] = None,
    rotation: Annotated[
        float | None, typer.Option(help=_augmentation("Random rotation, degrees.", "rotation_degrees"))
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help=_augmentation("Random change of size, a fraction.", "scale"))
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random (not for digits or text).")] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Of the split, the weights and the order; with --integer of the order: the split's is the teacher's."
        ),
    ] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = _TRAINING.threads,
    trunk_rate: Annotated[
        float, typer.Option(help="Learning rate of the backbone, as a share of the rest's.")
    ] = _REFINEMENTS.trunk_rate,
    validation_share: Annotated[
        float,
        typer.Option(
            help="Share of the training images that tells the best epoch, whose weights are kept; 0: the last."
        ),
    ] = _REFINEMENTS.validation_share,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better validation mAP; 0 never does.")
    ] = _REFINEMENTS.patience,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _REFINEMENTS.device,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Compute in bfloat16 where that is safe; on a GPU.")
    ] = _REFINEMENTS.mixed_precision,
    log: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard's event files; needs the package tensorboard.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
    cache: CacheOption = None,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Train a network on labelled images and write its checkpoint; the same command gives the same weights.

    With --integer, fine-tune an integer checkpoint so that its codes follow the float network's.
    """
    if (integer is None) != (teacher is None):
        raise InputError("--integer and --teacher go together: the integer checkpoint, and the float one it is made of")
    defaults = _TRAINING if integer is None else FINE_TUNING
    default_weights = _WEIGHTS if integer is None else LossWeights(0, 0, 0)

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    options = TrainingOptions(
        epochs=defaults.epochs if epochs is None else epochs,
        batch_size=batch_size,
        learning_rate=given(learning_rate, defaults.learning_rate),
        weight_decay=given(weight_decay, defaults.weight_decay),
        warmup_epochs=defaults.warmup_epochs,
        seed=seed,
        threads=threads,
        augmentation=Augmentation(
            given(shift, defaults.augmentation.shift_pixels),
            given(rotation, defaults.augmentation.rotation_degrees),
            given(scale, defaults.augmentation.scale),
            flip,
        ),
    )
    weights = LossWeights(
        given(pairwise, default_weights.pairwise),
        given(quantisation, default_weights.quantisation),
        given(classification, default_weights.classification),
        balance,
        centres,
        imbalance,
    )
    if integer is None and not any((weights.pairwise, weights.quantisation, weights.classification, balance, centres)):
        raise InputError("the weights of all losses are 0: there is nothing to learn, give one of them")
    refinements = Refinements(trunk_rate, validation_share, patience, device, mixed_precision)
    counts = {"--queries-per-class": queries_per_class, "--train-per-class": train_per_class}
    if integer is not None and teacher is not None:
        _refuse_what_the_checkpoint_fixes(context)
        from dmsh_model.cli import fine_tune as integer_training_command
        from dmsh_model.finetune import run as integer_training
        from dmsh_model.finetune import split as integer_training_split

        start = integer_training.read_start(integer, teacher)
        labelled = read_labelled(data, start.model.config.image_size, skip_bad, cache)
        refuse_split_options(labelled, counts)
        integer_training_command.fine_tune(
            start,
            labelled,
            integer_training_split.split_as_taught(start.training, queries_per_class, train_per_class, seed),
            options,
            weights,
            out,
            resume=resume,
            overwrite=overwrite,
            json=json,
        )
        return
    # Checked before torch is imported and the images are read; num_classes is known only then.
    HashConfig(backbone, bits, image_size)
    from dmsh_model.data import load as images_of
    from dmsh_model.training import log as training_log
    from dmsh_model.training import loop as training_loop
    from dmsh_model.training import run as training

    if log:
        training_log.require_tensorboard()

    default = images_of.SplitOptions()
    split_options = images_of.SplitOptions(
        default.queries_per_class if queries_per_class is None else queries_per_class,
        default.train_per_class if train_per_class is None else train_per_class,
        seed,
    )
    labelled = read_labelled(data, image_size, skip_bad, cache)
    refuse_split_options(labelled, counts)
    digits = data == images_of.MNIST_5K
    config = HashConfig(
        backbone,
        bits,
        image_size,
        lateral_features=lateral_features,
        fusion_features=fusion_features,
        mean=images_of.MNIST_5K_MEAN if digits else IMAGENET_MEAN,
        std=images_of.MNIST_5K_STD if digits else IMAGENET_STD,
        num_classes=len(labelled.class_names),
        loss=weights,
    )
    first = started_by_torchrun().first
    with contextlib.ExitStack() as stack:
        write_log = stack.enter_context(training_log.event_files(log)) if log and first else None
        display = stack.enter_context(console.progress())
        task = display.add_task("training", total=options.epochs, visible=first)

        def show(epoch: training_loop.Epoch) -> None:
            display.update(task, completed=epoch.number, description=f"training, loss {epoch.loss:.4f}")
            if write_log:
                write_log(epoch)

        trained = training.fit(
            config,
            labelled,
            split_options,
            options,
            out,
            pretrained=pretrained,
            resume=resume,
            overwrite=overwrite,
            refinements=refinements,
            on_epoch=show,
        )
    if not first:
        return
    sizes = trained.record["split"]
    console.print_table(
        f"{out}: {backbone}, {bits} bits, trained on {data}",
        ["measure", "value"],
        [
            ["training images", str(sizes["train"])],
            ["queries", str(sizes["queries"])],
            ["database", str(sizes["database"])],
            ["unreadable images left out", str(len(labelled.bad))],
            *_validation_rows(trained.record),
            ["mAP@all", f"{trained.map_all:.4f}"],
        ],
    )
    console.write_json(json, {"out": str(out), "bad": labelled.bad, **trained.record})


def _validation_rows(record: dict[str, Any]) -> list[list[str]]:
    found = record.get("validation")
    return [["best epoch, by validation mAP", f"{found['best_epoch']} ({found['map_all']:.4f})"]] if found else []


def _refuse_what_the_checkpoint_fixes(context: typer.Context) -> None:
    given = [name for name in _FIXED_BY_THE_CHECKPOINT if _is_given(context, name)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{names}: with --integer the network is the checkpoint's, leave it out")
    given = [name for name in _FOR_FLOAT_TRAINING if _is_given(context, name)]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is for float training: with --integer, leave it out")
    if started_by_torchrun().count > 1:
        raise InputError("--integer trains in one process: start it without torchrun")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
