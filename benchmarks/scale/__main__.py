"""What scale costs on this machine; docs/scale.md quotes it.

python -m benchmarks.scale clickhouse --codes 10000000 --json FILE
python -m benchmarks.scale encode MODEL IMAGES --json FILE
python -m benchmarks.scale local --codes 1000000000 --json FILE
python -m benchmarks.scale plot --measured FILE --out docs/img
"""

import json as jsons
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.scale.billion import measure_local
from benchmarks.scale.encoding import measure_encoding
from benchmarks.scale.remote import measure_remote
from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, write_json
from dmsh_serving.program import run

app = make_app("Measure what scale costs.")


def made(folder: Path) -> Path:
    """Make a folder unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


FolderOption = Annotated[Path, typer.Option(help="Where temporary files go; they are removed.", callback=made)]


def say(line: str) -> None:
    """Print one line."""
    console().print(line)


@app.command()
def clickhouse(
    codes: Annotated[int, typer.Option(help="Number of codes.")] = 10_000_000,
    rounds: Annotated[int, typer.Option(help="Searches of each kind.")] = 25,
    folder: FolderOption = Path("build"),
    json: JsonOption = None,
) -> None:
    """Time the engine clickhouse on the embedded ClickHouse."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_json(json, measure_remote(Path(temporary), codes, rounds, say))


@app.command()
def encode(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    images: Annotated[str, typer.Argument(help="Folder of images.")],
    shard_images: Annotated[int, typer.Option(help="Images per file.")] = 32,
    folder: FolderOption = Path("build"),
    json: JsonOption = None,
) -> None:
    """Time encoding with one worker, two, and two of Ray."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_json(json, measure_encoding(model, images, Path(temporary), shard_images, say))


@app.command()
def local(
    codes: Annotated[int, typer.Option(help="Number of codes.", min=300_000)] = 1_000_000_000,
    folder: FolderOption = Path("build"),
    json: JsonOption = None,
) -> None:
    """Build, open, search, filter and change a gallery folder; it takes 17 bytes per code on the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_json(json, measure_local(Path(temporary), codes, say))


@app.command("plot")
def plot_(
    measured: Annotated[Path, typer.Option(help="JSON of the command clickhouse.")],
    out: Annotated[Path, typer.Option(help="Folder of the plots.", callback=made)] = Path("docs/img"),
    json: JsonOption = None,
) -> None:
    """Draw what 1 to 64 shards cost and how long the slowest of them takes, from one measured shard."""
    from benchmarks.scale.fan_out import plot

    write_json(json, plot(jsons.loads(measured.read_text()), out))


if __name__ == "__main__":
    run(app)
