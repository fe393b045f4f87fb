"""How fast are the encoders, and how many bits does each get wrong? PyTorch, ONNX Runtime, OpenVINO; float and integer.

All encoders of a network see the same images in turns, so that a noisy machine hits all. Wrong bits are counted against
the network's own PyTorch reference, on images that no scale was calibrated on.
"""

import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.encode.results import EncodeBench, Peak
from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from benchmarks.encode.contenders import Contender
    from benchmarks.encode.timing import Row, Setting, Wrong

app = make_app("Time the encoders of a network side by side, and count every wrong bit.")

_PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "numpy")
_COMPARED_IMAGES = 48
_EVERY = ("demo", "resnet18", "resnet50", "efficientnet_lite0", "vgg19")
_PLANS = {False: (_EVERY, (1, 8), 7), True: (("demo", "resnet18"), (1, 8), 3)}


@app.command()
def encode(
    quick: Annotated[bool, typer.Option("--quick", help="The demo's network and resnet18, few rounds.")] = False,
    networks: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(_EVERY)}; may be given again.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images a call; may be given again.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed turns of each encoder.")] = None,
    torch_compile: Annotated[
        bool,
        typer.Option("--compile/--no-compile", help="Time torch.compile too, which takes half a minute a network."),
    ] = True,
    page: Annotated[
        Path | None, typer.Option(help="A page to write the tables to, between the markers of this CPU's kind.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file to draw the speeds to.")] = None,
    json: JsonOption = None,
) -> None:
    """Time the encoders of some networks side by side, and count every wrong bit."""
    from benchmarks.common.networks import NETWORKS
    from benchmarks.common.page import around, replace
    from benchmarks.encode.page import markdown
    from benchmarks.encode.page import plot as draw

    planned_networks, planned_batches, planned_rounds = _PLANS[quick]
    unknown = sorted(set(networks or ()) - set(NETWORKS))
    if unknown:
        raise InputError(f"no network {', '.join(unknown)} to time, there are {', '.join(NETWORKS)}")
    if page is not None:
        around(page, marker())  # refused now, not after minutes of measuring
    started = time.monotonic()
    bench = measured(
        networks or planned_networks, batch or planned_batches, rounds or planned_rounds, torch_compile=torch_compile
    )
    _print(bench)
    if page is not None:
        replace(page, marker(), markdown(bench))
    if plot is not None:
        draw(plot, bench)
    write_json(json, bench.to_dict())
    console().print(f"took {time.monotonic() - started:.0f} s")
    check(bench.wrong)


def marker() -> str:
    """Return the name in the page's markers: a kind of CPU keeps its tables when another is measured."""
    from dmsh_export.compare.machine import instructions

    return {"AMX": "encode-amx", "AVX-512 with VNNI": "encode-vnni"}.get(instructions("int8"), "encode-other")


def check(wrong: "tuple[Wrong, ...]") -> None:
    """Raise :class:`CheckError` where the integer network's bits or logits are not PyTorch's."""
    for entry in wrong:
        if entry.reference == "integer" and (entry.wrong_bits or entry.different_logits):
            raise CheckError(
                f"{entry.network}, {entry.contender}: {entry.wrong_bits:,} bits and {entry.different_logits:,} logits "
                f"of {entry.bits:,} are not the integer reference's"
            )


def measured(
    networks: "list[str] | tuple[str, ...]", batches: "list[int] | tuple[int, ...]", rounds: int, *, torch_compile: bool
) -> EncodeBench:
    """Measure everything, a network after the other."""
    from benchmarks.encode.peak import Arithmetic, peak_operations_per_second
    from benchmarks.encode.timing import settings
    from dmsh_export.compare.machine import machine_name

    kinds: tuple[Arithmetic, ...] = ("fp32", "int8")
    chosen = settings(sorted(set(batches)))
    with progress() as bar:
        task = bar.add_task("peak", total=None)
        peaks = [
            Peak(kind, threads, peak_operations_per_second(kind, threads))
            for threads in sorted({setting.threads for setting in chosen})
            for kind in kinds
        ]
        rows: list[Row] = []
        wrong: list[Wrong] = []
        left_out: list[str] = []
        for name in networks:
            bar.update(task, description=name)
            found = _measure_network(name, chosen, rounds, peaks, torch_compile=torch_compile)
            rows += found[0]
            wrong += found[1]
            left_out += found[2]
    return EncodeBench(
        machine_name(),
        {package: version(package) for package in _PACKAGES},
        tuple(peaks),
        tuple(rows),
        tuple(wrong),
        tuple(left_out),
    )


def _measure_network(
    name: str, chosen: "list[Setting]", rounds: int, peaks: list[Peak], *, torch_compile: bool
) -> "tuple[list[Row], list[Wrong], list[str]]":
    """Return a network's speeds, its wrong bits, and what could not be timed and why."""
    import numpy as np

    from benchmarks.common.networks import network, real_images
    from benchmarks.encode.contenders import Compiled, contenders
    from benchmarks.encode.files import CALIBRATION_IMAGES, write_encoder_files
    from benchmarks.encode.peak import operations_per_image
    from benchmarks.encode.timing import Row, logits_of, seconds_in_turns, wrong_of

    images = real_images(name, CALIBRATION_IMAGES + _COMPARED_IMAGES)
    calibration, compared = images[:CALIBRATION_IMAGES], images[CALIBRATION_IMAGES:]
    peak_of = {(peak.arithmetic, peak.threads): peak.operations_per_s for peak in peaks}
    rows: list[Row] = []
    left_out: list[str] = []
    ready: list[Contender] = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_encoder_files(network(name, calibration), calibration, Path(folder))
        operations = operations_per_image(files.integer.network)
        compiled = Compiled(files.model) if torch_compile else None
        for batch, threads in ((setting.batch, setting.threads) for setting in chosen):
            if compiled and not compiled.tried(images[np.arange(batch) % len(images)], threads):
                left_out.append(f"{name} by torch.compile ({compiled.failure})")
                compiled = None
            ready = list(contenders(files, compiled, threads))
            seconds = seconds_in_turns(ready, images, batch, rounds)
            for contender, durations in zip(ready, seconds, strict=True):
                speed = batch / float(np.median(durations))
                share = speed * operations / peak_of[contender.arithmetic, threads]
                slowest = batch / max(durations)
                rows.append(Row(name, contender.name, batch, threads, speed, slowest, rounds, share, contender.isa))
        expected = {
            "float": logits_of(ready[0].run, compared),  # PyTorch eager
            "integer": files.integer.logits(compared),
        }
        wrong = [
            wrong_of(name, contender, expected[contender.reference], logits_of(contender.run, compared))
            for contender in ready
        ]
    return rows, wrong, left_out


def _print(bench: EncodeBench) -> None:
    from benchmarks.encode.page import BASELINES, ratio, setting_name
    from benchmarks.encode.timing import Setting

    wrong = {(entry.network, entry.contender): entry for entry in bench.wrong}
    for network in dict.fromkeys(row.network for row in bench.rows):
        rows = [row for row in bench.rows if row.network == network]
        columns = list(dict.fromkeys(Setting(row.batch, row.threads) for row in rows))
        cells = []
        for contender in dict.fromkeys(row.contender for row in rows):
            mine = [row for row in rows if row.contender == contender]
            speeds = {
                Setting(row.batch, row.threads): f"{row.images_per_s:,.1f} ({row.share_of_peak:.0%})" for row in mine
            }
            entry = wrong[network, contender]
            counts = [f"{entry.wrong_bits:,} of {entry.bits:,}", f"{entry.different_logits:,}"]
            cells.append([contender, *(speeds.get(column, "-") for column in columns), *counts])
        for name, names in BASELINES.items():
            ratios = [f"{ratio(rows, network, column, names):.2f}" for column in columns]
            cells.append([f"fastest integer network / {name}", *ratios, "-", "-"])
        print_table(
            f"{network}: images/s (share of the peak)",
            ["encoder", *map(setting_name, columns), "wrong bits", "different logits"],
            cells,
        )
    for peak in bench.peaks:
        console().print(
            f"peak {peak.arithmetic}, {peak.threads} threads: {peak.operations_per_s / 1e9:,.0f} G operations/s"
        )
    for reason in bench.left_out:
        console().print(f"not timed: {reason}")


if __name__ == "__main__":
    run(app)
