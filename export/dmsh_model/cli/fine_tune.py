"""``dmsh-train fine-tune``: train an integer network in its own arithmetic."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_model.cli.data_option import CacheOption, DataArgument, read_labelled, refuse_split_options
from dmsh_model.cli.options import (
    LOSS_OPTIONS,
    SCHEDULE_OPTIONS,
    SPLIT,
    AugmentationFlags,
    OutOption,
    OverwriteOption,
    ResumeOption,
)
from dmsh_model.config import LossWeights
from dmsh_model.training.distributed import started_by_torchrun
from dmsh_model.training.options import FINE_TUNING, TrainingOptions
from dmsh_serving import console
from dmsh_serving.commands import Flags
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.finetune.run import FineTuned
    from dmsh_model.training.loop import Epoch

__all__ = ["fine_tune"]


def fine_tune(
    integer: Annotated[Path, typer.Argument(help="The integer checkpoint to start from.")],
    data: DataArgument,
    teacher: Annotated[
        Path, typer.Option(help="The float checkpoint that INTEGER was made from, whose codes it learns to give.")
    ],
    out: OutOption,
    queries_per_class: Annotated[
        int | None,
        typer.Option(help="Held-out queries per class.  [default: as the teacher's]", rich_help_panel=SPLIT),
    ] = None,
    train_per_class: Annotated[
        int | None,
        typer.Option(help="Most training images per class.  [default: as the teacher's]", rich_help_panel=SPLIT),
    ] = None,
    training: Annotated[TrainingOptions, Flags(**SCHEDULE_OPTIONS)] = FINE_TUNING,
    losses: Annotated[LossWeights, Flags(**LOSS_OPTIONS)] = LossWeights(),
    augmentation: AugmentationFlags = FINE_TUNING.augmentation,
    whole: Annotated[
        bool, typer.Option("--whole", help="Train the trunk too: every epoch then computes every image.")
    ] = False,
    noise: Annotated[
        float,
        typer.Option(help="Deviation of the noise on the features that the head learns from, as a share of theirs."),
    ] = 0.3,
    cache: CacheOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Fine-tune an integer network in its own arithmetic. Its codes then follow the float network's.

    By default the head alone is trained, on features that the trunk computes once. With --whole the trunk is trained
    too; 5 epochs at a learning rate of 3e-4 are then enough.
    The losses of the labels are added to the distance from the float network's logits. Set --pairwise, --quantisation
    and --classification to 0 to follow the float network alone.
    """
    if started_by_torchrun().count > 1:
        raise InputError("fine-tune trains in one process: start it without torchrun")
    from dmsh_model.finetune import run as integer_training
    from dmsh_model.finetune.split import split_as_taught

    start = integer_training.read_start(integer, teacher)
    config = start.model.config
    labelled = read_labelled(data, config.image_size, config.framing, skip_bad, cache)
    refuse_split_options(labelled, {"--queries-per-class": queries_per_class, "--train-per-class": train_per_class})
    options = dataclasses.replace(training, augmentation=augmentation)
    with console.progress() as display:
        task = display.add_task("fine-tuning in integers", total=options.epochs)

        def show(epoch: "Epoch") -> None:
            description = f"fine-tuning in integers, loss {epoch.loss:.5f}"
            display.update(task, completed=epoch.number, description=description)

        tuned = integer_training.fine_tune(
            start,
            labelled,
            split_as_taught(start.training, queries_per_class, train_per_class, options.seed),
            options,
            out,
            weights=losses,
            whole=whole,
            noise=noise,
            resume=resume,
            overwrite=overwrite,
            on_epoch=show,
        )
    _print(out, labelled.source, tuned)
    result = {"out": str(out), "fingerprint": tuned.model.fingerprint, "bad": labelled.bad}
    console.write_json(json, {**result, **tuned.record})


def _print(out: Path, source: str, tuned: "FineTuned") -> None:
    sizes, seen = tuned.record["split"], tuned.record["queries_trained_on"]
    held_out = "held-out queries" if seen == 0 else "queries"
    console.print_table(
        f"{out}: {sizes['queries']} {held_out} of {source}, database of {sizes['database']}",
        ["network", "mAP@all", "bits equal to the float network's"],
        [
            ["float", f"{tuned.teacher.map_all:.4f}", "100%"],
            ["integer, before", f"{tuned.before.map_all:.4f}", f"{tuned.before.equal_bits_share:.3%}"],
            ["integer, fine-tuned", f"{tuned.after.map_all:.4f}", f"{tuned.after.equal_bits_share:.3%}"],
        ],
    )
    say = console.console().print
    if seen is None:
        say("The checkpoints record no split of these images: some queries may have been trained on.")
    elif seen:
        say(f"{seen} of {sizes['queries']} queries were trained on before, because the split is another.")
    say(f"code space {tuned.model.fingerprint[:12]}: encode the gallery anew")
