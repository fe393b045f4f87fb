"""dmsh-export deploy: from a checkpoint and images to a folder that a server starts from."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import JsonOption, SkipBadOption, console, print_table, progress, write_json


def deploy(
    checkpoint: Annotated[Path, typer.Argument(help="A float or integer checkpoint.")],
    images: Annotated[
        Path, typer.Option(help="Images to search in and to calibrate on: a folder, or .npy, uint8 [N, H, W, 3].")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a rerun makes only what is missing.")],
    in_float: Annotated[bool, typer.Option("--float", help="Stay in FP32 instead of quantising to integers.")] = False,
    settings: Annotated[
        Path | None, typer.Option(help="A file of dmsh-export tune.  [default: the fastest exact runtime here]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make everything in --out anew.")] = False,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Make all that a service needs from a checkpoint and images.

    The steps: quantise, export, prove, compare with PyTorch, choose the fastest exact runtime of this machine, encode
    the gallery, write the model repository.
    """
    from dmsh_export import deploy as deployment
    from dmsh_serving.triton.settings import read_settings

    with progress() as bar:
        task = bar.add_task("", total=None)
        steps = deployment.deploy(
            checkpoint,
            images,
            out,
            in_float=in_float,
            settings=None if settings is None else read_settings(settings),
            skip_bad=skip_bad,
            overwrite=overwrite,
            on_step=lambda name: bar.reset(task, description=name, total=None),
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_table(
        f"Deployment {out}",
        ["step", "artefact", "result", "seconds"],
        [
            [step.name, str(step.artefact), step.result, "kept" if step.kept else f"{step.seconds:.1f}"]
            for step in steps
        ],
    )
    repository = out / deployment.REPOSITORY
    console().print(f"serve it:  dmsh-serve start --repository {repository}")
    console().print("ask it:    dmsh-serve query IMAGE...")
    write_json(
        json,
        {
            "out": str(out),
            "repository": str(repository),
            "steps": [{**vars(step), "artefact": str(step.artefact)} for step in steps],
        },
    )


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")] = Path("build/demo"),
    drawings: Annotated[Path, typer.Option(help="The archive of drawings.")] = Path("demo/drawings.zip"),
    triton: Annotated[Path | None, typer.Option(help="tritonserver, its folder, or a Python environment.")] = None,
    json: JsonOption = None,
) -> None:
    """Train, deploy, serve and query on drawings; compare every bit.

    It leaves everything in a folder: checkpoint, images, galleries, the model repository and a report.html.
    """
    from dmsh_export.demo.run import run_demo

    write_json(json, run_demo(drawings, out, triton))
