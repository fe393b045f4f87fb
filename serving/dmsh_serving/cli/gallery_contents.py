"""``dmsh-serve gallery list`` and ``sync``: what a gallery holds, and that it holds what a folder does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.cli.gallery import BatchOption, GalleryArgument, gallery_app
from dmsh_serving.commands import command
from dmsh_serving.console import JsonOption, SkipBadOption, print_table, printable, progress, reporting, write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH

if TYPE_CHECKING:
    from dmsh_serving.gallery.sync import Synced

_SHOWN = 20


@command(gallery_app, "dmsh-serve gallery list build/gallery", name="list")
def list_codes(folder: GalleryArgument, json: JsonOption = None) -> None:
    """List the id and the key of every code. A line is an id, a tab and a key.

    What cannot be shown of a key has escapes; --json has keys as they are.
    """
    from dmsh_serving import gallery

    snapshot = gallery.open_current(folder)
    contents = snapshot.contents()
    ids, keys = contents.ids.tolist(), contents.keys
    for row, number in enumerate(ids):
        typer.echo(f"{number}\t{printable(keys[row])}" if keys is not None else str(number))
    write_json(
        json,
        {
            "folder": str(folder),
            "version": snapshot.version,
            "ids": ids,
            "keys": None if keys is None else list(keys),
        },
    )


@command(gallery_app, "dmsh-serve gallery sync build/gallery photos --model build/model.onnx")
def sync(
    folder: GalleryArgument,
    images: Annotated[Path, typer.Argument(help="Folder of images that the gallery is to hold.", show_default=False)],
    model: Annotated[Path, typer.Option(help="ONNX model whose codes the gallery holds.")],
    batch: BatchOption = DEFAULT_MAX_BATCH,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Make a gallery hold the images of a folder.

    Adds images that are new, removes those that are gone, and encodes again those whose content changed.
    """
    from dmsh_serving.gallery import sync as gallery_sync
    from dmsh_serving.images.read import others_line

    with progress() as display:
        task = display.add_task("encoding", total=None)
        done = gallery_sync.sync(
            folder,
            images,
            model,
            batch,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    with reporting(done.snapshot.version):
        _report(folder, done, others_line(images), json)


def _report(folder: Path, done: "Synced", others: str | None, json: Path | None) -> None:
    counts = {"added": done.added, "changed": done.changed, "removed": done.removed}
    print_table(
        f"Gallery synced: {folder}",
        ["", ""],
        [
            ["version", done.snapshot.version],
            ["codes", f"{done.snapshot.count:,}"],
            *([name, f"{len(keys):,}"] for name, keys in counts.items()),
            ["unchanged", f"{done.unchanged:,}"],
            *([["skipped images", f"{len(done.bad):,}"]] if done.bad else []),
        ],
    )
    for line in done.bad[:_SHOWN]:
        typer.echo(f"skipped {printable(line)}", err=True)
    if others:
        typer.echo(printable(others))
    result = {name: list(keys) for name, keys in counts.items()}
    write_json(
        json,
        {
            "folder": str(folder),
            "version": done.snapshot.version,
            "count": done.snapshot.count,
            **result,
            "unchanged": done.unchanged,
            "skipped": list(done.bad),
        },
    )
