"""Where the local engine ends: a gallery of very many codes, built by streaming, mapped, searched, changed and swapped.

Codes come from a file that is mapped, and go to the gallery block by block. The peak is that of this process; pages of
mapped files are counted apart, because the system takes them back when it needs them.
"""

import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.gallery.verify import verify
from dmsh_serving.ranker.follower import Ranker

__all__ = ["measure_local"]

BITS: Final = 64
FINGERPRINT: Final = "f" * 64
_BLOCK: Final = 1 << 24


def measure_local(folder: Path, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the seconds of each step for ``count`` codes of 64 bits; ``folder`` needs 17 bytes per code."""
    found: dict[str, Any] = {"codes": count, "seconds": {}, "memory_mib": {}}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        with _Peak() as peak:
            start = time.perf_counter()
            result = step()
            found["seconds"][name] = time.perf_counter() - start
        found["memory_mib"][name] = peak.own_mib
        say(f"{name}: {found['seconds'][name]:.2f} s, {peak.own_mib:,.0f} MiB of its own")
        return result

    path = folder / "codes.npy"
    timed("write the codes", lambda: _write(path, count))
    place = folder / "gallery"

    def build() -> None:
        codes = np.load(path, mmap_mode="r").view(np.ndarray)
        gallery.build(place, codes, None, None, bits=BITS, fingerprint=FINGERPRINT)

    timed("build", build)
    path.unlink()
    gc.collect()
    snapshot = timed("open and check every byte", lambda: gallery.open_current(place))
    if not timed("verify", lambda: verify(place)).sound:
        raise AssertionError("the gallery is damaged")
    queries = uniform_codes(8, BITS, seed=7)
    for threads in (1, 2):
        for number in range(3):
            step = partial(snapshot.search, queries[number : number + 1], 100, threads=threads)
            timed(f"search k=100, {threads} threads, query {number + 1}", step)
    timed("8 queries at once, 2 threads", lambda: snapshot.search(queries, 100, threads=2))
    timed("radius 12, k=1000, 2 threads", lambda: snapshot.search(queries[:1], 1000, radius=12, threads=2))
    few, many = np.arange(0, count, count // 100_000), np.arange(0, count, 3)[:50_000_000]
    timed(f"filter of {len(few):,} ids, looked up", lambda: snapshot.search(queries[:1], 100, allowed=few, threads=2))
    timed(f"filter of {len(many):,} ids, as a mask", lambda: snapshot.search(queries[:1], 100, allowed=many, threads=2))
    answers = snapshot.search(queries[:1], 100, threads=2)
    with Ranker(place, bits=BITS, fingerprint=FINGERPRINT, threads=2) as ranker:
        before = ranker.version
        timed("append 1,000", lambda: gallery.append(place, uniform_codes(1000, BITS, seed=8), None, None))
        timed("swapped in while it serves", lambda: _until(lambda: ranker.version != before))
        after = ranker.search(queries[:1], 100)
    if (after.distances > answers.distances).any():
        raise AssertionError("an append has lost answers")
    return found


class _Peak:
    """The most memory of its own that this process had within the block, in MiB: without pages of mapped files."""

    def __enter__(self) -> "_Peak":
        self.own_mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.own_mib = max(self.own_mib, int(lines["RssAnon"].split()[0]) / 1024)
            if self._over.wait(0.05):
                return


def _write(path: Path, count: int) -> None:
    random = np.random.default_rng(1)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, BITS // 8))
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        array[start:stop] = random.integers(0, 2**64, stop - start, np.uint64).view(np.uint8).reshape(-1, BITS // 8)
    array.flush()


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
