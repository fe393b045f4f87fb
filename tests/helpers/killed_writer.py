"""Kill a writer again and again: ``python killed_writer.py FOLDER SECONDS KILLS SEED`` prints what was found as JSON.

A child appends, removes and compacts without end and says after each change that it is done. It is killed (SIGKILL) at
a random moment, and the gallery must then be what the acknowledged changes make of it, or one change further: the one
that was under way. One process forks all the children, so a round costs as much as its changes.
"""

import json
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

from dmsh_serving import gallery
from dmsh_serving.gallery.folder import open_version, part_path, part_paths

SPACE = {"bits": 32, "fingerprint": "f" * 64}


def changes(held, seed):
    """Yield (change, what is held after it) without end; ``held`` is {id: (code, key)}. The same for the same seed."""
    random = np.random.default_rng(seed)
    while True:
        choice = random.integers(0, 10)
        if choice < 6 or len(held) < 20:
            count, first = int(random.integers(1, 40)), max(held, default=-1) + 1
            codes = random.integers(0, 4, (count, 4), dtype=np.uint8)
            keys = [f"é{number}" for number in random.integers(0, 10**6, count).tolist()]
            added = {first + place: (codes[place].tobytes(), key) for place, key in enumerate(keys)}
            held = held | added
            yield ("append", codes, np.arange(first, first + count), keys), held
        elif choice < 9:
            gone = random.permutation(list(held))[: int(random.integers(1, min(len(held), 30)))]
            held = {number: rest for number, rest in held.items() if number not in gone}
            yield ("remove", gone), held
        else:
            yield ("compact",), held


def make(folder, change):
    name, *arguments = change
    getattr(gallery, name)(folder, *arguments)


def held_by(snapshot):
    contents = snapshot.contents()
    codes = [code.tobytes() for code in contents.codes]
    return dict(zip(contents.ids.tolist(), zip(codes, contents.keys, strict=True), strict=True))


def killed(folder, held, seed, delay):
    """Let a child write for ``delay`` seconds; return how many changes it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        for change, _ in changes(held, seed):
            make(folder, change)
            os.write(writing, b"!")
    os.close(writing)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = 0
    while said := os.read(reading, 4096):
        acknowledged += len(said)
    os.close(reading)
    return acknowledged


def check_swept(folder, versions):
    """Raise unless the folder holds the files of ``versions`` and nothing else."""
    needed = {part_path(folder, name.version) for version in versions for name in open_version(folder, version).names}
    assert set(part_paths(folder)) == needed
    assert {path.name for path in folder.iterdir()} - {path.name for path in needed} == {"CURRENT", ".lock"}


def main(folder, seconds, kills, seed):
    random = np.random.default_rng(seed)
    gallery.build(folder, np.empty((0, 4), np.uint8), None, [], **SPACE)
    held, found = {}, {"kills": 0, "acknowledged": 0, "unacknowledged": 0, "leftovers": 0}
    longest = 0.03  # seconds that a child may write
    end = time.monotonic() + seconds
    while found["kills"] < kills and time.monotonic() < end:
        round_seed = int(random.integers(0, 2**62))
        acknowledged = killed(folder, held, round_seed, random.uniform(0, longest))
        longest *= 0.95 if acknowledged else 1.05  # so that half acknowledge a change, on any disk, however busy all is
        states = [held, *(after for _, after in islice(changes(held, round_seed), acknowledged + 1))]
        served = gallery.open_current(folder)
        now = held_by(served)
        assert now in states[-2:], f"seed {round_seed}: lost something after {acknowledged} changes"
        leftovers = [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
        found["leftovers"] += bool(leftovers)
        found["unacknowledged"] += now != states[-2]
        found["acknowledged"] += acknowledged
        found["kills"] += 1
        # The next writer takes over at once, and sweeps.
        change, held = next(changes(now, round_seed + 1))
        make(folder, change)
        after = gallery.open_current(folder)
        assert held_by(after) == held
        check_swept(folder, [served.version, after.version])
        if len(held) > 600:
            held = {}
            gallery.build(folder, np.empty((0, 4), np.uint8), None, [], overwrite=True, **SPACE)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
