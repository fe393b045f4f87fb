"""Does ``dmsh-serve load`` measure what NVIDIA's perf_analyzer measures? Both on one server, in turns, the same load.

    python -m benchmarks.load --perf-analyzer perf_analyzer [--page docs/serving.md]

perf_analyzer comes with `pip install perf-analyzer` and needs glibc 2.38.
"""

import csv
import dataclasses
import json as json_text
import os
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, write_json
from dmsh_serving.contract import IMAGE, SEARCH_MODEL, K
from dmsh_serving.errors import CheckError, MissingError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from benchmarks.serve.world import Images
    from dmsh_serving.load.send import Load

app = make_app("Hold dmsh-serve load against NVIDIA's perf_analyzer.")

_NAME: Final = "perf-analyzer"  # in the markers of the page
_MOST_DIFFERENCE: Final = 0.05
_SECONDS: Final = 300


@dataclass(frozen=True)
class Figures:
    """What one tool measured of one load: requests per second, and percentiles in milliseconds."""

    requests_per_s: float
    p50_ms: float
    p90_ms: float

    @classmethod
    def median(cls, rounds: "Sequence[Figures]") -> "Figures":
        """Return the median of each figure."""
        return cls(*map(statistics.median, zip(*(dataclasses.astuple(each) for each in rounds), strict=True)))


@dataclass(frozen=True)
class Row:
    """One load, by both tools."""

    network: str
    load: str
    ours: Figures
    theirs: Figures

    @property
    def differences(self) -> dict[str, float]:
        """By which share each of our figures is above theirs."""
        ours, theirs = dataclasses.asdict(self.ours), dataclasses.asdict(self.theirs)
        return {name: ours[name] / theirs[name] - 1 for name in ours}


@app.command()
def load(
    perf_analyzer: Annotated[str, typer.Option(help="Its command line.")] = "perf_analyzer",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each tool per load.")] = 3,
    network: Annotated[list[str] | None, typer.Option(help="Network to serve. Repeat it.")] = None,
    page: Annotated[Path | None, typer.Option(help="A page to write the table to, between its markers.")] = None,
    json: JsonOption = None,
) -> None:
    """Measure the same loads with both tools, and fail if they differ by more than 5% in throughput."""
    from benchmarks.common.page import around, replace
    from dmsh_export.compare.machine import machine_name

    if page is not None:
        around(page, _NAME)
    machine, busy = machine_name(), os.getloadavg()[0]
    rows = [
        row for name in network or ["demo", "resnet50"] for row in measured(name, shlex.split(perf_analyzer), rounds)
    ]
    head = f"{machine}; load average {busy:.1f} when it began; medians of {rounds} turns each."
    table = markdown(rows)
    print_table(head, table[0], table[1:])
    if page is not None:
        lines = [" | ".join(row) for row in (table[0], ["---"] * 2 + ["---:"] * (len(table[0]) - 2), *table[1:])]
        replace(page, _NAME, "\n".join([head, "", *(f"| {line} |" for line in lines)]))
    write_json(json, {"machine": machine, "load_average": busy, "rows": [dataclasses.asdict(row) for row in rows]})
    far = [row for row in rows if abs(row.differences["requests_per_s"]) > _MOST_DIFFERENCE]
    if far:
        raise CheckError("; ".join(f"{row.network}, {row.load}: {row.differences}" for row in far))
    console().print("the throughputs agree within 5%")


def measured(name: str, perf_analyzer: Sequence[str], rounds: int) -> list[Row]:
    """Measure one network: a client alone, four, and an open loop at a third of what four bring."""
    from benchmarks.serve.world import make_world
    from dmsh_serving.load.send import Closed, Open
    from dmsh_serving.triton.server.launcher import TritonServer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = make_world(name, folder, 10_000, 2)
        data = folder / "search.json"
        data.write_text(input_data(world.images[:8]))
        with TritonServer(world.repository, log_file=folder / "triton.log", canary=False) as server:
            rows = [
                _row(name, each, server.url, world.images[:8], data, perf_analyzer, rounds)
                for each in (Closed(1), Closed(4))
            ]
            rate = Open(float(f"{rows[-1].ours.requests_per_s / 3:.2g}"), "fixed")
            rows.append(_row(name, rate, server.url, world.images[:8], data, perf_analyzer, rounds))
    return rows


def input_data(images: "Images") -> str:
    """Return the requests that perf_analyzer is to send, one image each, in its JSON."""
    requests = [{IMAGE: {"content": image.ravel().tolist(), "shape": list(image.shape)}, K: [10]} for image in images]
    return json_text.dumps({"data": requests})


def _row(
    name: str, load: "Load", url: str, images: "Images", data: Path, perf_analyzer: Sequence[str], rounds: int
) -> Row:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_ours(load, url, images))
        theirs.append(_theirs(load, url, data, perf_analyzer))
    return Row(name, str(load), Figures.median(ours), Figures.median(theirs))


def _ours(load: "Load", url: str, images: "Images") -> Figures:
    from dmsh_serving.load.measure import Measuring, measure
    from dmsh_serving.load.triton import TritonTarget

    with TritonTarget(url, SEARCH_MODEL, images, batch=1, k=10, timeout=30) as target:
        found = measure(target, load, measuring=Measuring(1.0, 2.0, 10))
    return Figures(found.requests_per_s, found.milliseconds("p50") or 0, found.milliseconds("p90") or 0)


def _theirs(load: "Load", url: str, data: Path, perf_analyzer: Sequence[str]) -> Figures:
    from dmsh_serving.load.send import Closed

    out = data.with_name("perf.csv")
    if isinstance(load, Closed):
        asked = ["--concurrency-range", str(load.concurrency)]
    else:  # at fixed times: two tools do not draw the same random ones
        asked = ["--request-rate-range", f"{load.rate:g}", "--request-distribution", "constant"]
    command = [*perf_analyzer, "-m", SEARCH_MODEL, "-i", "grpc", "-u", url, "--input-data", str(data), *asked]
    try:
        done = subprocess.run(
            [*command, "-p", "2000", "-s", "50", "-f", str(out)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except OSError as error:
        raise MissingError(f"{perf_analyzer[0]} cannot run ({error}): pip install perf-analyzer") from error
    if done.returncode or not out.is_file():
        raise CheckError(f"perf_analyzer ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return figures_of_csv(out.read_text())


def figures_of_csv(text: str) -> Figures:
    """Read the first line of what perf_analyzer writes with ``-f``; it has microseconds."""
    row: dict[str, Any] = next(csv.DictReader(text.splitlines()))
    return Figures(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p90 latency"]) / 1e3)


def markdown(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table: its heads, then its rows."""
    heads = [
        "network",
        "load",
        "requests/s",
        "perf_analyzer",
        "",
        "p50, ms",
        "perf_analyzer",
        "",
        "p90, ms",
        "perf_analyzer",
    ]
    return [
        heads,
        *(
            [
                row.network,
                row.load,
                f"{row.ours.requests_per_s:,.1f}",
                f"{row.theirs.requests_per_s:,.1f}",
                f"{row.differences['requests_per_s']:+.1%}",
                f"{row.ours.p50_ms:.2f}",
                f"{row.theirs.p50_ms:.2f}",
                f"{row.differences['p50_ms']:+.1%}",
                f"{row.ours.p90_ms:.2f}",
                f"{row.theirs.p90_ms:.2f}",
            ]
            for row in rows
        ),
    ]


if __name__ == "__main__":
    run(app)
