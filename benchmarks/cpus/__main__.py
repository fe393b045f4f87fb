"""The integer networks on other machines: does every CPU give PyTorch's bits and logits, and the same images?

x86 with AVX2 and no VNNI, ARM64 with and without a dot product: emulated by QEMU, beside this machine
itself. Controls switch off what makes ONNX Runtime exact on AVX2: they must come out wrong, and the known answer must
refuse them. What is not installed is fetched by apt and pip into a cache, without root.
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, write_json
from dmsh_serving.errors import CheckError, InputError, MissingError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from benchmarks.cpus.compare import Row
    from benchmarks.cpus.decoding import Decoded
    from benchmarks.cpus.machines import CpuName, Machine
    from benchmarks.cpus.networks import NetworkName

Name = TypeVar("Name", bound=str)

CACHE: Final = Path(__file__).parents[2] / "build" / "cpus"
CPU_NAMES: Final[tuple["CpuName", ...]] = ("native", "avx2", "arm64", "arm64-a53")
NETWORK_NAMES: Final[tuple["NetworkName", ...]] = ("demo", "vgg11_bn")
REPORT: Final = "report.json"  # what the demo's page shows
COLUMNS: Final = [
    "machine", "emulator", "ONNX Runtime", "network", "dialect", "session", "graph", "images", "bits", "wrong bits",
    "different logits", "known answer", "seconds",
]  # fmt: skip

app = make_app("Run the integer networks under emulated CPUs and compare every bit and logit with PyTorch.")


@app.command()
def cpus(
    cpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"One of {', '.join(CPU_NAMES)}; may be repeated; all without it."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"One of {', '.join(NETWORK_NAMES)}; may be repeated; all without it."),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="At most this many real images a run.")] = None,
    cache: Annotated[
        Path, typer.Option(help="Where emulators are kept, and the report goes.", show_default="build/cpus")
    ] = CACHE,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="End with 0 where a machine cannot be had; it is named all the same.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Compare the chosen machines with PyTorch; exit 1 on one difference, 3 where a machine cannot be had."""
    begun = time.perf_counter()
    cpu_names, network_names = _chosen("--cpu", cpu, CPU_NAMES), _chosen("--network", network, NETWORK_NAMES)
    from benchmarks.cpus.processes import interrupted_by_signals

    with interrupted_by_signals():
        machines, missing = _machines(cpu_names, cache)
        decoded = decoded_on(machines)
        rows = compared(machines, network_names, images) if machines else []
    if decoded:
        print_table(
            "Images against those decoded here",
            ["machine", "emulator", "Pillow", "images", "different"],
            [[row.title, row.emulator, row.pillow, str(row.files), str(len(row.different))] for row in decoded],
        )
    if rows:
        print_table("Integer codes against PyTorch's", COLUMNS, [_cells(row) for row in rows])
    for line in missing:
        console().print(f"skipped: {line}")
    report = {
        **summary(rows),
        "decoded": [dataclasses.asdict(row) for row in decoded],
        "skipped": missing,
        "seconds": time.perf_counter() - begun,
    }
    if rows:
        write_json(cache / REPORT, report)
    write_json(json, report)
    failures = [row.failure() for row in decoded if not row.passed] + [row.failure() for row in rows if not row.passed]
    if failures:
        raise CheckError("; ".join(failures))
    if rows:
        console().print(_conclusion(rows, time.perf_counter() - begun))
    if missing and not skip_missing:
        raise MissingError("; ".join(missing))


def decoded_on(machines: Sequence["Machine"]) -> list["Decoded"]:
    """Return what decoding the sample of files gave on each machine.

    Raises:
        CheckError: a machine gives no result.
    """
    from benchmarks.cpus import decoding

    with tempfile.TemporaryDirectory() as folder:
        return [decoding.decoded(machine, Path(folder)) for machine in machines]


def compared(machines: Sequence["Machine"], names: Sequence["NetworkName"], most: int | None) -> list["Row"]:
    """Return a row for every machine, network and setting, as many at a time as there are processors.

    Raises:
        CheckError: a machine gives no result.
    """
    from benchmarks.cpus import compare as cpus_compare
    from benchmarks.cpus import processes as cpus_processes
    from benchmarks.cpus.networks import networks
    from dmsh_serving.cpu import available_cpus

    rows = []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(available_cpus()) as pool:
        folder = Path(temporary)
        for network in networks(tuple(names), most or max(cpus_compare.IMAGES.values()), folder):
            console().print(f"{network.name}: quantised and exported, PyTorch's codes computed")
            try:
                pending = [
                    pool.submit(cpus_compare.run, machine, network, setting, folder, most)
                    for machine in machines
                    for setting in cpus_compare.settings(machine, network.name)
                ]
                for future in pending:
                    rows.append(future.result())
                    console().print(_line(rows[-1]))
            except BaseException:
                # What waits first, or it would begin while what runs is ended.
                pool.shutdown(wait=False, cancel_futures=True)
                cpus_processes.end_all()
                raise
    return rows


def summary(rows: Sequence["Row"]) -> dict[str, Any]:
    """Return the JSON report: all rows, and for each emulated machine and code space the bits of its runs, no controls.

    The demo's page reads ``machines``; this machine is no part of it, since the demo compares on it itself.
    """
    totals: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.machine != "native" and not row.setting.control:
            total = totals.setdefault((row.title, row.fingerprint), [0, 0])
            total[0] += row.bits
            total[1] += row.wrong_bits
    return {
        "machines": [
            {"machine": f"{title} (emulated)", "fingerprint": fingerprint, "bits": bits, "wrong_bits": wrong}
            for (title, fingerprint), (bits, wrong) in totals.items()
        ],
        "rows": [{**dataclasses.asdict(row), "passed": row.passed} for row in rows],
    }


def _machines(names: Sequence["CpuName"], cache: Path) -> tuple[list["Machine"], list[str]]:
    """Return the machines that can be had, and a line for each that cannot."""
    from benchmarks.cpus.machines import ready

    machines, missing = [], []
    for name in names:
        try:
            machines.append(ready(name, cache))
        except MissingError as error:
            missing.append(f"{name}: {error}")
    return machines, missing


def _chosen(option: str, given: list[str] | None, names: tuple[Name, ...]) -> tuple[Name, ...]:
    unknown = sorted(set(given or ()) - set(names))
    if unknown:
        raise InputError(f"{option} {', '.join(unknown)}: choose from {', '.join(names)}")
    return tuple(name for name in names if not given or name in given)


def _cells(row: "Row") -> list[str]:
    setting = row.setting
    session = {"served": "as served", "openvino": "OpenVINO"}.get(setting.session, setting.session)
    session += f" with {setting.isa}" if setting.isa else ""
    return [
        row.title,
        row.emulator,
        row.onnxruntime,
        row.network,
        setting.dialect,
        session + (", control" if setting.control else ""),
        "optimised" if setting.optimise else "as written",
        str(row.images),
        f"{row.bits:,}",
        f"{row.wrong_bits:,}",
        f"{row.different_logits:,}",
        "refuses" if row.refused else "agrees",
        f"{row.seconds:.1f}",
    ]


def _line(row: "Row") -> str:
    verdict = "" if row.passed else ": FAILED"
    title, *_, bits, wrong, logits, known, _ = _cells(row)
    settings = " ".join(_cells(row)[4:7])
    return f"  {title}: {settings}: {wrong} of {bits} bits wrong, {logits} logits differ, known answer {known}{verdict}"


def _conclusion(rows: Sequence["Row"], seconds: float) -> str:
    checks = [row for row in rows if not row.setting.control]
    controls = [row for row in rows if row.setting.control]
    bits = sum(row.bits for row in checks)
    caught = f"; {len(controls)} controls wrong, each refused by its known answer" if controls else ""
    names = ", ".join(dict.fromkeys(row.machine for row in checks))
    return f"{names}: 0 wrong bits and 0 different logits of {bits:,} each{caught} ({seconds:.0f} s)"


def main() -> None:
    """Run the comparison."""
    run(app)


if __name__ == "__main__":
    main()
