"""The labelled images that commands take, as an argument and read with a progress display."""

from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving import console

if TYPE_CHECKING:
    from dmsh_model.data import LabelledImages

DataArgument = Annotated[str, typer.Argument(help="A folder with one folder of images a class, or mnist5k.")]


def read_labelled(data: str, image_size: int, skip_bad: bool) -> "LabelledImages":
    """Read what ``DataArgument`` names; see :func:`dmsh_model.data.load_labelled`."""
    from dmsh_model.data import load_labelled

    with console.progress() as display:
        task = display.add_task("reading images", total=None)
        return load_labelled(
            data,
            image_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
