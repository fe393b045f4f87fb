"""How long does a search take through the page's API, and what does the page cost a browser?

    python -m benchmarks.web [--quick]

The demo's network serves a gallery with one image file for each code. A search of one file through the API takes turns
with the same search over gRPC. Then a real browser shows 200 cards, and scrolls through the whole gallery.
"""

import contextlib
import dataclasses
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, print_table, write_json
from dmsh_serving.program import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

app = make_app("Time searches through the page's API, and visit the page with a browser.")

_NAME: Final = "web"  # in the markers of the page
_CARDS: Final = 200
_FILES: Final = 64  # different images; every name is a file of its own


@dataclass(frozen=True)
class WebBench:
    """Everything that was measured.

    Attributes:
        machine: the CPU; load_average: above 0, others were busy when it began.
        images: in the gallery.
        api_ms, grpc_ms: the median of a search of one file, k = 10.
        steps_ms: the medians of decode, encode and rank of a search with explain, and the whole of it.
        cards_ms: from the answer to the pictures of 200 cards, the median.
        scrolled: thumbnails that were seen.
        memory_mb, most_memory_mb: the whole browser's before the scroll, and at most; page_mb: of the page's process.
        own_kb: the page's own files.
    """

    machine: str
    load_average: float
    images: int
    api_ms: float
    grpc_ms: float
    steps_ms: dict[str, float]
    cards_ms: float
    scrolled: int
    memory_mb: float
    most_memory_mb: float
    page_mb: float
    own_kb: float

    def rows(self) -> list[list[str]]:
        """Return what was measured, the figure, and what is to be reached."""
        steps = ", ".join(f"{name} {ms:.2f}" for name, ms in self.steps_ms.items())
        return [
            ["a search of one file through the API, p50", f"{self.api_ms:.2f} ms", ""],
            ["  with explain, each step by itself", f"{steps} ms", ""],
            ["  the same over gRPC, without the page", f"{self.grpc_ms:.2f} ms", ""],
            ["  what the API adds", f"{self.api_ms - self.grpc_ms:.2f} ms", "3 ms"],
            [f"from the answer to the pictures of {_CARDS} cards, p50", f"{self.cards_ms:.0f} ms", "500 ms"],
            ["thumbnails scrolled through", f"{self.scrolled:,}", "20,000"],
            ["  memory of the page's process, at most", f"{self.page_mb:.0f} MiB", "500 MB"],
            ["  of the whole browser, before", f"{self.memory_mb:.0f} MiB", ""],
            ["  of the whole browser, at most", f"{self.most_memory_mb:.0f} MiB", ""],
            ["  its growth", f"{self.most_memory_mb - self.memory_mb:.0f} MiB", "500 MB"],
            ["the page's own files", f"{self.own_kb:.0f} KB", "150 KB"],
        ]


@app.command()
def web(
    quick: Annotated[bool, typer.Option("--quick", help="A small gallery and few rounds.")] = False,
    page: Annotated[Path | None, typer.Option(help="A page to write the table to, between its markers.")] = None,
    json: JsonOption = None,
) -> None:
    """Time a search through the API, cards in a browser, and the browser's memory while it scrolls."""
    from benchmarks.common.page import around, replace

    if page is not None:
        around(page, _NAME)  # refused now, not after minutes of measuring
    bench = measured(1_000 if quick else 20_000, rounds=3 if quick else 20)
    print_table("The search page", ["", "here", "to reach"], bench.rows())
    if page is not None:
        replace(page, _NAME, markdown(bench))
    write_json(json, dataclasses.asdict(bench))


def measured(images: int, rounds: int) -> WebBench:
    """Measure everything over a gallery of ``images`` images."""
    from benchmarks.serve.world import make_world
    from benchmarks.web.visit import scrolled, seconds_to_cards
    from dmsh_export.compare.machine import machine_name
    from dmsh_serving.triton.server.launcher import TritonServer

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        world = make_world("demo", folder, images, threads=2)
        files = _write_files(folder / "images", world.images, images)
        with (
            TritonServer(world.repository, log_file=folder / "triton.log") as server,
            _page(server.url, world.gallery, folder) as url,
        ):
            api, grpc, steps = _search_seconds(url, server.url, files, 15 * rounds)
            cards = seconds_to_cards(url, "image-0", min(_CARDS, images // 5), max(3, rounds // 2))
            scroll = scrolled(url, "image-0")
    return WebBench(
        machine=machine_name(),
        load_average=load,
        images=images,
        api_ms=1e3 * statistics.median(api),
        grpc_ms=1e3 * statistics.median(grpc),
        steps_ms={name: statistics.median(each) for name, each in steps.items()},
        cards_ms=1e3 * statistics.median(cards),
        scrolled=scroll.cards,
        memory_mb=scroll.before_mb,
        most_memory_mb=scroll.most_mb,
        page_mb=scroll.page_mb,
        own_kb=own_kilobytes(),
    )


@contextlib.contextmanager
def _page(triton: str, gallery: Path, folder: Path) -> "Iterator[str]":
    """Serve the page as a person does, in a process of its own; yield its address."""
    command = [sys.executable, "-m", "dmsh_serving", "web", "--server", triton, "--images", folder / "images"]
    command += ["--gallery", gallery, "--cache", folder / "cache", "--port", "0"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running.stdout.readline().split()[-1]
        finally:
            running.terminate()


def _write_files(folder: Path, images: Any, count: int) -> list[bytes]:
    """Write a file for each key ``image-N`` and return the different ones' bytes."""
    from PIL import Image

    folder.mkdir()
    different = images[:_FILES]
    for number, image in enumerate(different):
        Image.fromarray(image).save(folder / f"image-{number}", "PNG")
    for number in range(len(different), count):
        (folder / f"image-{number}").hardlink_to(folder / f"image-{number % len(different)}")
    return [(folder / f"image-{number}").read_bytes() for number in range(len(different))]


def _search_seconds(
    url: str, triton: str, files: list[bytes], rounds: int
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """Return the seconds of each search through the API and over gRPC, in turns, and the API's steps in ms."""
    import json

    from dmsh_serving.client import SearchClient
    from dmsh_serving.timing import in_turns

    steps: dict[str, list[float]] = {"decode": [], "encode": [], "rank": []}
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    number = 0

    def through_api() -> None:
        connection.request("POST", "/v1/search?k=10", files[number % len(files)], {"Content-Type": "image/png"})
        json.loads(connection.getresponse().read())

    def explained() -> None:
        address = "/v1/search?k=10&explain=true"
        connection.request("POST", address, files[number % len(files)], {"Content-Type": "image/png"})
        answer = json.loads(connection.getresponse().read())
        for name, spent in steps.items():
            spent.append(answer["times"][f"{name}_ms"])

    with SearchClient(triton, timeout=120) as client:  # a first search may compile what it searches with

        def over_grpc() -> None:
            client.search_files([files[number % len(files)]], 10)

        def next_file(_: int) -> None:
            nonlocal number
            number += 1

        calls: list[Callable[[], object]] = [through_api, over_grpc, explained]
        in_turns(calls[::-1], 20)  # warms both
        for spent in steps.values():
            spent.clear()
        api, grpc, steps["whole"] = in_turns(calls, rounds, before_round=next_file)
    connection.close()
    steps["whole"] = [1e3 * each for each in steps["whole"]]
    return api, grpc, steps


def own_kilobytes() -> float:
    """Return the size of the page's own files, templates, scripts and styles, in KB."""
    import dmsh_serving.web as package

    folder = Path(package.__path__[0])
    return sum(file.stat().st_size for kind in ("static", "templates") for file in (folder / kind).iterdir()) / 1000


def markdown(bench: WebBench) -> str:
    """Return the table."""
    lines = [
        f"{bench.machine}; load average {bench.load_average:.1f} when it began; {bench.images:,} images, each a file.",
        "",
        "| | here | to reach |",
        "|---|---:|---:|",
    ]
    lines += ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in bench.rows()]
    return "\n".join(lines)


if __name__ == "__main__":
    run(app)
