"""What does serving cost? The Triton ensemble over gRPC, against its encoder and ranker called in this process.

    python -m benchmarks.serve [--quick]

A second Triton serves the same repository with models that do nothing: what is left is Triton, its network and the
processes of its Python models, which none of ours can undercut.
"""

import contextlib
import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.program import run

if TYPE_CHECKING:
    from dmsh_export.compare.latency import Latency

app = make_app("Time searches that Triton serves, against the same encoder and ranker in this process.")

_NAME: Final = "serve"  # in the markers of the page
IN_PROCESS, ENSEMBLE, IDLE, PING = (
    "in process",
    "Triton: the search",
    "Triton: models that do nothing",
    "Triton: a ping",
)
ENCODER: Final = "encoder alone, in process"
_CLIENTS: Final = 4
_IMAGES_A_ROUND: Final = {"demo": 32_768, "resnet50": 256}  # some seconds each
_THREADS: Final = 2


@dataclass(frozen=True)
class Served:
    """One network: lone requests, and images/s when saturated."""

    network: str
    lone: tuple["Latency", ...]
    batch: int
    images_per_s: dict[str, float]

    @property
    def over_in_process(self) -> float:
        """By how many ms the median of a served search is above that of the same work in process."""
        medians = self._medians()
        return medians[ENSEMBLE] - medians[IN_PROCESS]

    @property
    def times_idle(self) -> float:
        """The median of a served search without the encoder's own time, over that of models that do nothing."""
        medians = self._medians()
        return (medians[ENSEMBLE] - medians[ENCODER]) / medians[IDLE]

    def _medians(self) -> dict[str, float]:
        return {each.target: each.p50_ms for each in self.lone}

    @property
    def throughput_share(self) -> float:
        """The ensemble's images/s, of the encoder's alone."""
        return self.images_per_s[ENSEMBLE] / self.images_per_s[ENCODER]


@dataclass(frozen=True)
class ServeBench:
    """Everything that was measured."""

    machine: str
    load_average: float  # when it began: above 0 others were busy too
    codes: int
    served: tuple[Served, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


@app.command()
def serve(
    quick: Annotated[bool, typer.Option("--quick", help="The demo's network alone, few rounds.")] = False,
    codes: Annotated[int, typer.Option(min=1, help="Codes in the gallery.")] = 100_000,
    page: Annotated[Path | None, typer.Option(help="A page to write the tables to, between its markers.")] = None,
    json: JsonOption = None,
) -> None:
    """Time lone requests and throughput of a served search, network by network."""
    from benchmarks.common.page import around, replace

    if page is not None:
        around(page, _NAME)  # refused now, not after minutes of measuring
    started = time.monotonic()
    bench = measured(("demo",) if quick else ("demo", "resnet50"), codes, rounds=2 if quick else 10)
    _print(bench)
    if page is not None:
        replace(page, _NAME, markdown(bench))
    write_json(json, bench.to_dict())
    console().print(f"took {time.monotonic() - started:.0f} s")


def measured(networks: tuple[str, ...], codes: int, rounds: int) -> ServeBench:
    """Measure everything, a network after the other."""
    from dmsh_export.compare.machine import machine_name

    load = os.getloadavg()[0]
    served = []
    with progress() as bar:
        task = bar.add_task("", total=len(networks))
        for name in networks:
            bar.update(task, description=name)
            with tempfile.TemporaryDirectory() as folder:
                served.append(_measure_network(name, Path(folder), codes, rounds))
            bar.advance(task)
    return ServeBench(machine_name(), load, codes, tuple(served))


def _measure_network(name: str, folder: Path, codes: int, rounds: int) -> Served:
    import tritonclient.grpc as triton

    from benchmarks.serve.timing import lone, saturated
    from benchmarks.serve.world import Images, make_world
    from dmsh_serving.client import SearchClient
    from dmsh_serving.encoder.onnxruntime import OnnxEncoder
    from dmsh_serving.ranker.follower import Ranker
    from dmsh_serving.triton.server.launcher import TritonServer

    world = make_world(name, folder, codes, _THREADS)
    with contextlib.ExitStack() as stack:
        encoder = stack.enter_context(OnnxEncoder(world.model, threads=_THREADS))
        ranker = stack.enter_context(Ranker(world.gallery, bits=world.bits, fingerprint=world.fingerprint, threads=1))
        servers = [
            stack.enter_context(TritonServer(each, log_file=folder / f"{each.name}.log"))
            for each in (world.repository, world.idle)
        ]
        real, idle = (stack.enter_context(SearchClient(server.url)) for server in servers)
        pinged = stack.enter_context(triton.InferenceServerClient(servers[0].url))

        def in_process(images: Images) -> object:
            return ranker.search(encoder.infer(images).checked().code, 10)

        calls = {
            ENCODER: encoder.infer,
            IN_PROCESS: in_process,
            ENSEMBLE: lambda images: real.search(images, k=10),
            IDLE: lambda images: idle.search(images, k=10),
            PING: lambda _: pinged.is_server_live(),
        }
        latencies = lone(calls, world.images, rounds=rounds, a_round=100 if name == "demo" else 10)
        batch = 32 if name == "demo" else 8
        speeds = saturated(
            {ENCODER: (encoder.infer, 1), IN_PROCESS: (in_process, 1), ENSEMBLE: (calls[ENSEMBLE], _CLIENTS)},
            world.images,
            batch=batch,
            rounds=max(2, rounds // 2),
            images_a_round=_IMAGES_A_ROUND[name],
        )
    return Served(name, tuple(latencies), batch, speeds)


def markdown(bench: ServeBench) -> str:
    """Return the tables: lone requests, then throughput."""
    parts = [f"{bench.machine}; load average {bench.load_average:.1f} when it began; {bench.codes:,} codes of 64 bits."]
    lines = [
        "| network | one request at a time | p50, ms | p90 | p99 | p50 over in process "
        "| less the encoder, over models that do nothing |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in bench.served:
        for each in one.lone:
            shown = " | ".join(f"{ms:.2f}" for ms in (each.p50_ms, each.p90_ms, each.p99_ms))
            over, times = (
                (f"{one.over_in_process:+.2f}", f"**{one.times_idle:.2f}x**") if each.target == ENSEMBLE else ("", "")
            )
            lines.append(f"| {one.network} | {each.target} | {shown} | {over} | {times} |")
    parts.append("\n".join(lines))
    lines = ["| network | without pause | images/s | of the encoder alone |", "|---|---|---:|---:|"]
    for one in bench.served:
        for name, speed in one.images_per_s.items():
            asked = f", {_CLIENTS} clients" if name == ENSEMBLE else ""
            share = speed / one.images_per_s[ENCODER]
            lines.append(f"| {one.network} | {name}{asked}, {one.batch} images per call | {speed:,.1f} | {share:.0%} |")
    parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _print(bench: ServeBench) -> None:
    for one in bench.served:
        print_table(
            f"{one.network}: one request at a time, ms",
            ["", "p50", "p90", "p99"],
            [[each.target, *(f"{ms:.2f}" for ms in (each.p50_ms, each.p90_ms, each.p99_ms))] for each in one.lone],
        )
        print_table(
            f"{one.network}: without pause",
            ["", "images/s"],
            [[name, f"{speed:,.1f}"] for name, speed in one.images_per_s.items()],
        )
        console().print(
            f"{one.network}: {one.over_in_process:.2f} ms over in process; without the encoder's own time "
            f"{one.times_idle:.2f} times models that do nothing; {one.throughput_share:.0%} of the encoder's throughput"
        )


if __name__ == "__main__":
    run(app)
