"""What would a user write instead? The same checkpoint and gallery behind FastAPI, under the same open-loop load.

    python -m benchmarks.peers [--page docs/serving.md]

For each service: the highest rate of requests whose p99 is within the budget, its memory, and its time to start.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, print_table, progress, write_json
from dmsh_serving.errors import MissingError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from benchmarks.peers.world import World
    from dmsh_serving.load.send import Sender

app = make_app("Hold a served search against what one would write with FastAPI.")

_NAME: Final = "peers"  # in the markers of the page
_THREADS: Final = 2
_GROWTH: Final = 1.25  # from one rate to the next
_LEAST_RATE: Final = 1.0  # requests/s: a service that cannot hold this is said to hold none
_START_SECONDS: Final = 120


@dataclass(frozen=True)
class Service:
    """One service: requests/s with p99 within the budget, that p99 and p50, its memory, and its time to start."""

    name: str
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    memory_mib: float
    start_seconds: float


@app.command()
def peers(
    budget: Annotated[float, typer.Option(help="Most milliseconds of p99.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="Seconds per window.")] = 2.0,
    codes: Annotated[int, typer.Option(min=1, help="Codes in the gallery.")] = 100_000,
    page: Annotated[Path | None, typer.Option(help="A page to write the table to, between its markers.")] = None,
    json: JsonOption = None,
) -> None:
    """Find how much load each service takes within a budget of p99."""
    from benchmarks.common.page import around, replace
    from benchmarks.peers.world import make_world
    from dmsh_export.compare.machine import machine_name

    if page is not None:
        around(page, _NAME)
    head = (
        f"{machine_name()}; load average {os.getloadavg()[0]:.1f} when it began; {codes:,} codes, p99 <= {budget:g} ms."
    )
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        task = bar.add_task("services", total=3)
        world = make_world(Path(folder), codes)
        found = []
        for name, opened in services(world).items():
            found.append(measured(name, opened, budget, seconds))
            bar.advance(task)
    rows = table(found)
    print_table(head, rows[0], rows[1:])
    if page is not None:
        lines = [" | ".join(row) for row in (rows[0], ["---"] + ["---:"] * (len(rows[0]) - 1), *rows[1:])]
        replace(page, _NAME, "\n".join([head, "", *(f"| {line} |" for line in lines)]))
    write_json(json, {"machine": head, "services": [dataclasses.asdict(each) for each in found]})


Opened = Callable[[], "contextlib.AbstractContextManager[tuple[Sender, int]]"]


def services(world: "World") -> dict[str, Opened]:
    """Return, by name, what starts each service; inside it gives a sender, and the id of the service's process."""
    return {
        "Triton, integers (this toolkit)": lambda: _triton(world),
        "FastAPI, PyTorch fp32, FAISS": lambda: _fastapi(world, world.checkpoint),
        "FastAPI, ONNX Runtime fp32, FAISS": lambda: _fastapi(world, world.float_model),
    }


def measured(name: str, opened: Opened, budget: float, seconds: float) -> Service:
    """Start a service and raise the rate until its p99 leaves the budget or it cannot keep up."""
    from dmsh_serving.load.measure import Measured, Measuring, measure
    from dmsh_serving.load.send import Closed, Open

    def held(rate: float) -> Measured | None:
        found = measure(sender, Open(rate), measuring=Measuring(1.0, seconds, 3), drain_seconds=20)
        p99 = found.milliseconds("p99", with_failed=True) or found.milliseconds("max", with_failed=True)
        return None if p99 is None or p99 > budget else found  # who cannot keep up leaves the budget within seconds

    begun = time.monotonic()
    with opened() as (sender, process):
        started = time.monotonic() - begun
        lone = measure(sender, Closed(1), measuring=Measuring(1.0, seconds, 3))
        rate = lone.requests_per_s / 2
        while (best := held(rate)) is None and rate > _LEAST_RATE:
            rate /= 2
        while best is not None and (found := held(rate * _GROWTH)) is not None:
            best, rate = found, rate * _GROWTH
        memory = memory_mib(process)
    if best is None:
        return Service(name, 0.0, lone.milliseconds("p50") or 0.0, float("inf"), memory, started)
    p50, p99 = best.milliseconds("p50") or 0.0, best.milliseconds("p99") or best.milliseconds("max") or 0.0
    return Service(name, best.requests_per_s, p50, p99, memory, started)


def memory_mib(process: int) -> float:
    """Return the memory of a process and its children, shared pages counted once (PSS), in MiB."""
    import psutil

    parent = psutil.Process(process)
    family = [parent, *parent.children(recursive=True)]
    return sum(float(each.memory_full_info().pss) for each in family) / (1 << 20)


def table(services: list[Service]) -> list[list[str]]:
    """Return a table, its heads first; the last column is against the second service, PyTorch's."""
    against = services[1].requests_per_s if len(services) > 1 else 0.0
    return [
        ["service", "requests/s", "p50, ms", "p99, ms", "memory, MiB", "start, s", "x PyTorch"],
        *(
            [
                each.name,
                f"{each.requests_per_s:.1f}",
                f"{each.p50_ms:.1f}",
                f"{each.p99_ms:.1f}",
                f"{each.memory_mib:.0f}",
                f"{each.start_seconds:.1f}",
                f"{each.requests_per_s / against:.2f}" if against else "-",
            ]
            for each in services
        ),
    ]


@contextlib.contextmanager
def _triton(world: "World") -> Iterator[tuple["Sender", int]]:
    from dmsh_serving.contract import SEARCH_FILE_MODEL
    from dmsh_serving.load.triton import TritonTarget
    from dmsh_serving.triton.server.launcher import TritonServer

    with (
        TritonServer(world.repository, log_file=world.repository.with_suffix(".log")) as server,
        TritonTarget(server.url, SEARCH_FILE_MODEL, world.files, batch=1, k=10, timeout=20) as target,
    ):
        yield target, server.pid


@contextlib.contextmanager
def _fastapi(world: "World", encoder: Path) -> Iterator[tuple["Sender", int]]:
    from benchmarks.peers.http_sender import HttpSender
    from dmsh_serving.triton.server.launcher import free_ports

    (port,) = free_ports("127.0.0.1", 1)
    program = str(Path(__file__).with_name("server.py"))
    command = [sys.executable, program, str(encoder), str(world.codes), str(port), str(_THREADS)]
    with subprocess.Popen(command) as process:
        sender = HttpSender(f"127.0.0.1:{port}", "/search", world.files, 20)
        try:
            deadline = time.monotonic() + _START_SECONDS
            while sender.call() is not None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise MissingError("the FastAPI server does not answer: is the extra bench installed?")
                time.sleep(0.05)
            yield sender, process.pid
        finally:
            sender.close()
            process.terminate()


if __name__ == "__main__":
    run(app)
