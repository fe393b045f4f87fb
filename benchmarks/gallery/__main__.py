"""What does a change of a gallery cost? An append to the chain of parts, beside writing a whole snapshot.

    python -m benchmarks.gallery --codes 100000 --codes 10000000 [--keys] [--json FILE]

The whole snapshot is written twice: as ``dmsh-serve gallery compact`` does, which chooses the layout anew, and in the
least that any such writer must do: concatenate, checksum, write, fsync, and open it as a reader does.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from dmsh_serving import gallery
from dmsh_serving.codes import Codes, uniform_codes
from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, print_table, write_json
from dmsh_serving.gallery.folder import writing
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.gallery.part import Part
from dmsh_serving.gallery.publish import publish
from dmsh_serving.program import run

app = make_app("Time one change of a gallery: a part on top of a chain, or a whole snapshot.")

BITS, ADDED, KEY_BYTES, FINGERPRINT = 64, 1000, 16, "f" * 64


def keys_from(first: int, count: int) -> Keys:
    """Return ``count`` different keys of 16 bytes each."""
    text = np.empty((count, KEY_BYTES), np.uint8)
    number = np.arange(first, first + count, dtype=np.int64)
    for column in range(KEY_BYTES - 1, -1, -1):
        text[:, column] = number % 10 + ord("0")
        number //= 10
    return Keys(np.arange(count + 1, dtype=np.int64) * KEY_BYTES, text.reshape(-1))


def measure(folder: Path, count: int, with_keys: bool, rounds: int) -> dict[str, tuple[float, int]]:
    """Return, for each way, the median seconds of one change and the bytes that it writes."""
    codes = uniform_codes(count, BITS, seed=0)
    keys = keys_from(0, count) if with_keys else None
    gallery.build(folder, codes, None, keys, bits=BITS, fingerprint=FINGERPRINT)
    del codes, keys
    seconds: dict[str, list[float]] = {}
    written: dict[str, int] = {}

    def timed(name: str, change: Callable[[], gallery.Snapshot]) -> None:
        start = time.perf_counter()
        snapshot = change()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        written[name] = max(written.get(name, 0), snapshot.path.stat().st_size)

    for number in range(rounds):
        first = count + 2 * number * ADDED
        added = uniform_codes(2 * ADDED, BITS, seed=1 + number)
        new_keys = keys_from(first, 2 * ADDED) if with_keys else None
        taken = [None if new_keys is None else new_keys.take(np.arange(ADDED) + start) for start in (0, ADDED)]
        timed("append", partial(gallery.append, folder, added[:ADDED], None, taken[0]))
        timed("whole, at least", partial(whole, folder, added[ADDED:], taken[1]))
        timed("whole, layout chosen", partial(gallery.compact, folder))
    return {name: (statistics.median(spent), written[name]) for name, spent in seconds.items()}


def whole(folder: Path, added: Codes, keys: Keys | None) -> gallery.Snapshot:
    """Write everything and ``added`` as one plain part, with the least work that is possible."""
    with writing(folder):
        old = gallery.open_current(folder)
        contents = old.contents()
        codes = np.concatenate([contents.codes, added])
        joined = None
        if keys is not None and contents.keys is not None:
            offsets = np.concatenate([contents.keys.offsets, keys.offsets[1:] + contents.keys.offsets[-1]])
            joined = Keys(offsets, np.concatenate([contents.keys.text, keys.text]))
        return publish(folder, Part(BITS, FINGERPRINT, codes, keys=joined))


@app.command()
def bench(
    codes: Annotated[list[int], typer.Option(help="Codes in the gallery; may be repeated.")],
    with_keys: Annotated[bool, typer.Option("--keys", help="Give each code a key of 16 bytes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the ways take turns in each.")] = 5,
    json: JsonOption = None,
) -> None:
    """Time one change of galleries of several sizes, and count the bytes that it writes."""
    rows, found = [], []
    for count in codes:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(Path(folder), count, with_keys, rounds)
        for name, (seconds, size) in measured.items():
            rows.append([f"{count:,}", name, f"{1e3 * seconds:,.0f}", f"{size / 1e6:,.2f}"])
            found.append({"codes": count, "way": name, "seconds": seconds, "bytes": size})
    title = f"Adding {ADDED:,} codes of {BITS} bits {'with' if with_keys else 'without'} keys, medians of {rounds}"
    print_table(title, ["codes", "way", "ms", "MB written"], rows)
    write_json(json, {"added": ADDED, "bits": BITS, "keys": with_keys, "rounds": rounds, "measured": found})


if __name__ == "__main__":
    run(app)
