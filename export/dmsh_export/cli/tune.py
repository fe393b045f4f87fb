"""dmsh-export tune: how an encoder is served best on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import InputError


def tune(
    models: Annotated[
        list[Path],
        typer.Argument(help="ONNX files of one network; each runs in the runtime of its dialect.", metavar="MODEL..."),
    ],
    out: Annotated[Path, typer.Option(help="File for the settings, which repository and deploy take.")],
    latency_ms: Annotated[float, typer.Option(min=0.001, help="The p99 that a request may take.")] = 50.0,
    quick: Annotated[bool, typer.Option("--quick", help="Try less: under two minutes.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A PNG file to draw throughput against p99 to.")] = None,
    triton: Annotated[Path | None, typer.Option(help="tritonserver, its folder, or a Python environment.")] = None,
    json: JsonOption = None,
) -> None:
    """Measure how to serve an encoder: runtime, threads, instances, batch and queue delay under a latency.

    Each runtime must give its known answer first. Then it is timed alone, and the best settings are served by a real
    Triton under several loads. It takes up to ten minutes; nothing is written before the end.
    """
    from dmsh_export.tune.plot import write_plot
    from dmsh_export.tune.run import FULL, QUICK, describe
    from dmsh_export.tune.run import tune as measure
    from dmsh_serving.encoder.base import RUNTIMES
    from dmsh_serving.triton.settings import write_settings

    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"{option} {path}: name a file in a folder that exists")
    with progress() as bar:
        task = bar.add_task("", total=None)
        found = measure(
            models,
            latency_ms,
            QUICK if quick else FULL,
            triton=triton,
            on_step=lambda what: bar.update(task, description=what),
        )
    print_table(
        "Alone, in this process",
        ["runtime", "threads", "batch", "ms per call", "images/s"],
        [
            [RUNTIMES[one.runtime], str(one.threads), str(one.batch), f"{1e3 * one.seconds:.2f}",
             f"{one.batch / one.seconds:,.0f}"]
            for one in found.alone
        ],
    )  # fmt: skip
    print_table(
        f"Live through Triton, one image per request; p99 within {latency_ms:g} ms",
        ["settings", "clients", "images/s", "p50 ms", "p99 ms", "within"],
        [
            [describe(one.settings), str(one.load.clients), f"{one.load.images_per_s:,.0f}",
             f"{one.load.p50_ms:.2f}", f"{one.load.p99_ms:.2f}", "yes" if one.within else "no"]
            for one in found.live
        ],
    )  # fmt: skip
    for runtime, reason in found.refused.items():
        console().print(f"{runtime} left out: {reason}")
    chosen = found.chosen
    write_settings(out, chosen.settings, found.to_dict())
    if plot is not None:
        write_plot(plot, found)
    console().print(
        f"chosen: {describe(chosen.settings)}: {chosen.load.images_per_s:,.0f} images/s at a p99 of "
        f"{chosen.load.p99_ms:.1f} ms"
    )
    console().print(
        f"serve it:  dmsh-export repository {found.model} --settings {out} --gallery GALLERY --out REPOSITORY"
    )
    write_json(json, found.to_dict())
