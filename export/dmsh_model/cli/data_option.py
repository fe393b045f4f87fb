"""The labelled images that commands take, as an argument and read with a progress display."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving import console
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

if TYPE_CHECKING:
    from dmsh_model.data.labelled import LabelledImages

_DATA_HELP = (
    "A folder with one subfolder of images per class; mnist5k; cifar10-54000:FOLDER (or -59000, -50000: the "
    "size of its database); nuswide21:LISTS:ROOT (or coco, imagenet100, lists): list files, and the folder that "
    "their paths are relative to; or an .npz file."
)
DataArgument = Annotated[str, typer.Argument(help=_DATA_HELP)]
OptionalDataArgument = Annotated[str | None, typer.Argument(help=_DATA_HELP)]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="Decode the images once, into this folder, and map them from there later.", rich_help_panel="Machine"
    ),
]


def read_labelled(
    data: str, image_size: int, framing: Framing, skip_bad: bool, cache: Path | None = None
) -> "LabelledImages":
    """Read what ``DataArgument`` names; see :func:`dmsh_model.data.load.load_labelled`."""
    from dmsh_model.data.load import load_labelled

    with console.progress() as display:
        task = display.add_task("reading images", total=None)
        return load_labelled(
            data,
            image_size,
            framing,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
            cache=cache,
        )


def refuse_split_options(data: "LabelledImages", given: dict[str, int | None]) -> None:
    """Raise :class:`InputError` if options of a split are given (not None) and the images come with one."""
    names = ", ".join(name for name, value in given.items() if value is not None)
    if data.given_split is not None and names:
        raise InputError(f"{names}: {data.source} comes with its split, leave it out")
