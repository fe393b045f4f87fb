"""Two workers beside one, and Ray beside processes: images per second, starts included and left out."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmsh_export.encode.on_ray import on_ray
from dmsh_export.encode.run import Engine, encode, on_processes

__all__ = ["measure_encoding"]


def measure_encoding(
    model: Path, images: str, folder: Path, shard_images: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return images per second of each way; steady is from the first finished shard of a worker on."""
    ways: dict[str, tuple[Engine, int]] = {
        "processes, 1 worker": (on_processes, 1),
        "processes, 2 workers": (on_processes, 2),
        "ray, 2 workers": (on_ray, 2),
    }
    found: dict[str, Any] = {}
    for name, (engine, workers) in ways.items():
        out = folder / "codes"
        marks: list[tuple[float, int]] = []
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()

        def note(done: int, total: int, marks: list[tuple[float, int]] = marks) -> None:
            marks.append((time.perf_counter(), done))

        encode(model, images, out, workers=workers, engine=engine, shard_images=shard_images, on_progress=note)
        seconds = time.perf_counter() - start
        (first, begun), (last, done) = marks[workers], marks[-1]
        found[name] = {"images": done, "seconds": seconds, "steady_per_second": (done - begun) / (last - first)}
        say(f"{name}: {done} images in {seconds:.1f} s, {found[name]['steady_per_second']:.1f} per second when running")
    return found
