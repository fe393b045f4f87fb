"""Hostile bytes for everything that reads bytes: ``python tests/helpers/fuzz.py --minutes 10``.

Each reader is fed mutations of sound files and of every input that made it answer in a new way. It may refuse with an
error of ours and nothing else, and must not take long. An input that breaks this is written to ``tests/data/fuzz``,
where a test feeds it again for ever.
"""

import argparse
import hashlib
import json
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_readers import READERS
from project import ROOT

from dmsh_serving.errors import DmshError

CORPUS = ROOT / "tests" / "data" / "fuzz"
SECONDS_EACH = 2.0  # of one input; the readers take far less
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_LARGEST = 1 << 16


@dataclass
class Run:
    """What one reader did with its inputs: how many it took, how often it answered in each way, what broke it."""

    executions: int = 0
    ways: Counter = field(default_factory=Counter)
    broken: list = field(default_factory=list)


def mutated(data, others, chance):
    """Return ``data`` after some random changes; ``others`` are spliced in."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case 2:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 40)))
            case 3:
                del data[at : at + chance.choice((1, 2, 8, 200))]
            case 4:
                size, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
                number = chance.choice(_NUMBERS) % 256**size
                data[at : at + size] = number.to_bytes(size, order)
            case 5:
                data[at:at] = data[at : at + chance.choice((4, 30, 300))] * chance.choice((1, 2, 20))
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                data[at:] = other[start:]
            case 7:
                del data[at:]
    return bytes(data[:_LARGEST])


def way_of(read, data):
    """Return in which way a reader answers: "read", or where and how it refuses; other exceptions pass."""
    try:
        read(data)
    except DmshError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"
    return "read"


def run(reader, seconds, seed=0, most=None):
    """Feed a reader for ``seconds``, or ``most`` inputs."""
    chance, found = random.Random(f"{reader.name} {seed}"), Run()
    corpus = list(reader.seeds())
    end = time.monotonic() + seconds
    while time.monotonic() < end and found.executions != most:
        data = mutated(chance.choice(corpus), corpus, chance)
        start = time.monotonic()
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow's, of thousands of damaged tags
                way = way_of(reader.read, data)
        except Exception as error:
            way = f"{type(error).__name__} {traceback.extract_tb(error.__traceback__)[-1].lineno}"
            if way not in found.ways:
                found.broken.append((data, "".join(traceback.format_exception(error))))
        if time.monotonic() - start > SECONDS_EACH:
            found.broken.append((data, f"it took {time.monotonic() - start:.1f} s"))
        found.executions += 1
        found.ways[way] += 1
        if found.ways[way] == 1 or (way == "read" and chance.random() < 0.01 and len(corpus) < 2000):
            corpus.append(data)
    return found


def keep(reader, data):
    """Write an input that broke a reader; return its path."""
    path = CORPUS / f"{reader.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0, help="of all readers together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    report, broken = {}, 0
    for reader in READERS:
        start = time.monotonic()
        found = run(reader, 60 * given.minutes / len(READERS), given.seed)
        report[reader.name] = {
            "executions": found.executions, "ways": len(found.ways), "read": found.ways["read"],
            "broken": len(found.broken), "seconds": round(time.monotonic() - start),
        }  # fmt: skip
        print(f"{reader.name:12} {found.executions:9,} executions, {len(found.ways):3} ways to answer, "
              f"{found.ways['read']:9,} read, {len(found.broken)} broken")  # fmt: skip
        for data, why in found.broken:
            broken += 1
            print(f"{keep(reader, data)}:\n{why}", file=sys.stderr)
    print(f"{sum(each['executions'] for each in report.values()):,} executions")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
