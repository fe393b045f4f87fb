"""Options that ``fit`` and ``fine-tune`` share, in the groups that their help shows."""

from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from dmsh_model.training.options import Augmentation
from dmsh_serving.commands import Flags

__all__ = [
    "AUGMENTATION",
    "LOSSES",
    "LOSS_OPTIONS",
    "MACHINE",
    "SCHEDULE",
    "SCHEDULE_OPTIONS",
    "SPLIT",
    "AugmentationFlags",
    "OutOption",
    "OverwriteOption",
    "ResumeOption",
    "option",
]

SPLIT, SCHEDULE, LOSSES, AUGMENTATION, MACHINE = "Split", "Schedule", "Weights of the losses", "Augmentation", "Machine"

OutOption = Annotated[Path, typer.Option(help="Checkpoint folder to write.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")]


def option(name: str, group: str | None, text: str) -> OptionInfo:
    """Return the option ``name`` with the help ``text``, under the heading ``group``; None: among the usual ones."""
    made: OptionInfo = typer.Option(name, help=text, rich_help_panel=group)
    return made


# Fields of TrainingOptions that every training has.
SCHEDULE_OPTIONS: dict[str, OptionInfo] = {
    "epochs": option("--epochs", None, "Passes over the training images."),
    "batch_size": option("--batch-size", SCHEDULE, "Images per step."),
    "learning_rate": option("--learning-rate", SCHEDULE, "Peak of the learning rate."),
    "weight_decay": option("--weight-decay", SCHEDULE, "Decay of weight matrices."),
    "seed": option("--seed", SCHEDULE, "Random seed for the split, the weights and the data order."),
    "threads": option("--threads", MACHINE, "CPU threads."),
}
# Fields of LossWeights that every training has.
LOSS_OPTIONS: dict[str, OptionInfo] = {
    "pairwise": option("--pairwise", LOSSES, "Similar images get near codes, others far ones (DPSH)."),
    "quantisation": option("--quantisation", LOSSES, "Each logit is near its sign."),
    "classification": option("--classification", LOSSES, "A code tells the class of its image."),
    "balance": option("--balance", LOSSES, "Each bit is 1 for half of the images."),
    "imbalance": option(
        "--imbalance",
        LOSSES,
        "Not a loss: 0 counts all pairs alike, 1 counts all similar pairs as much as all dissimilar ones.",
    ),
}
AugmentationFlags = Annotated[
    Augmentation,
    Flags(
        shift_pixels=option("--shift", AUGMENTATION, "Largest random shift, in pixels."),
        rotation_degrees=option("--rotation", AUGMENTATION, "Largest random rotation, in degrees."),
        scale=option("--scale", AUGMENTATION, "Largest random change of size, as a fraction."),
        flip=option("--flip", AUGMENTATION, "Mirror images at random; wrong for digits and text."),
    ),
]
