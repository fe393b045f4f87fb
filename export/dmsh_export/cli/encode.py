"""dmsh-export encode: very many images -> files of codes, by several workers."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import JsonOption, print_table, progress, write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH


class EngineName(StrEnum):
    """Values of ``--engine``."""

    PROCESSES = "processes"
    RAY = "ray"


def encode(
    model: Annotated[Path, typer.Argument(help="ONNX file of dmsh-export.", show_default=False)],
    images: Annotated[
        str, typer.Option(help="Folder, FILE.parquet (image, key, id), or s3://bucket/prefix.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the files of codes.", show_default=False)],
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many work at once, one core each.  [default: all cores]")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="What runs the workers.")] = EngineName.PROCESSES,
    shard_images: Annotated[int, typer.Option(min=1, help="Images per file.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = DEFAULT_MAX_BATCH,
    max_bad: Annotated[int, typer.Option(min=0, help="Most images that may give no code.")] = 0,
    json: JsonOption = None,
) -> None:
    """Encode very many images with several workers. A rerun does only what is missing.

    The files are the same bytes whatever the workers and the engine. gallery build --codes and gallery push read the
    folder. Images that give no code are listed in dead-letters.jsonl.
    """
    from dmsh_export.encode.run import DEAD_LETTERS, on_processes
    from dmsh_export.encode.run import encode as encoded
    from dmsh_serving.cpu import available_cpus

    run = on_processes
    if engine is EngineName.RAY:
        from dmsh_export.encode.on_ray import on_ray

        run = on_ray
    with progress() as display:
        task = display.add_task("encoding", total=None)
        done = encoded(
            model,
            images,
            out,
            workers=workers or available_cpus(),
            engine=run,
            shard_images=shard_images,
            batch=batch,
            max_bad=max_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    rows = [
        ["codes", f"{done.count:,}"],
        ["files", f"{done.shards:,}"],
        ["kept from an earlier run", f"{done.kept:,}"],
        ["images without a code", f"{len(done.bad):,}" + (f", see {out / DEAD_LETTERS}" if done.bad else "")],
        ["bits", str(done.bits)],
    ]
    print_table(f"Images encoded: {out}", ["", ""], rows)
    typer.echo(f"fingerprint {done.fingerprint}")
    write_json(
        json,
        {
            "out": str(out),
            "count": done.count,
            "files": done.shards,
            "kept": done.kept,
            "bad": [{"key": key, "reason": reason} for key, reason in done.bad],
            "bits": done.bits,
            "fingerprint": done.fingerprint,
        },
    )
