"""Clients that ask a live server without pause while its gallery changes and its processes are killed, and the oracle's
word on every answer."""

import contextlib
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import tiny_model
from live_world import CODES, IMAGES, png

from dmsh_serving import gallery
from dmsh_serving.client import SearchClient
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.triton.server.leftovers.shared_memory import SHARED_MEMORY

KEPT = 400  # answers that are kept for a second look
_IDS = 60_000
_DISTANCES = np.array([np.unpackbits(CODES ^ code, axis=1).sum(axis=1, dtype=np.uint8) for code in CODES])
_DIFFERS = (np.unpackbits(CODES, axis=1)[:, None] != np.unpackbits(CODES, axis=1)[None]).astype(np.float64)
_WEIGHTED = np.einsum("ib,ijb->ij", np.abs(tiny_model.logits_of(IMAGES)), _DIFFERS)  # whole numbers, so exact
_FILES = [png(image) for image in IMAGES]
# Requests that must be refused, and with what.
_BAD = (
    (lambda client: client.search_files([_FILES[0][:-40]], 5), "truncated"),
    (lambda client: client.search_files([b"no image"], 5), "not an image"),
    (lambda client: client.search(tiny_model.WHITE, 5), "NaN"),
    (lambda client: client.search(IMAGES[:1], 0), "k = 0"),
)


def codes_of(ids):
    """Image ``id % 300`` has id ``id``: many equal codes, so that large galleries are clustered and small ones not."""
    return CODES[ids % len(CODES)]


@dataclass(frozen=True)
class Sample:
    """What the server, its processes and this one hold at a moment."""

    seconds: float
    resident: int
    descriptors: int
    shared_memory: int
    launcher_descriptors: int


@dataclass
class Soak:
    """One run of ``seconds``: ``clients`` ask, the gallery changes ``swaps`` times; every tenth request is a bad one.

    In the first half a model's process is killed ``kills`` times. In the second half the server lives on, and what it
    holds is looked at again and again.

    Attributes:
        held: of each version, the ids in it, as the changes say, not as the gallery does.
        answered: queries that were answered.
        wrong: answers that the oracle does not give for the one version that each of them names.
        errors: good requests that failed though no process was killed meanwhile.
        excused: good requests that failed while a killed process was away.
        refused: bad requests that were refused as they should be.
        away: (from, to) of each kill: until an answer came again.
        samples: what was held, from six tenths of the time on.
    """

    server: object
    folder: Path
    seconds: float
    swaps: int
    kills: int
    clients: int = 4
    seed: int = 0
    held: dict = field(default_factory=dict)
    kept: list = field(default_factory=list)
    versions_seen: set = field(default_factory=set)
    answered: int = 0
    wrong: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    excused: int = 0
    refused: int = 0
    away: list = field(default_factory=list)
    samples: list = field(default_factory=list)

    def run(self):
        self._publish(gallery.build, np.arange(30_000), codes_of(np.arange(30_000)), overwrite=True)
        self._wait_for_version()
        self._stop, self._failed, self._answers = threading.Event(), [], queue.Queue(maxsize=200)
        self._start = time.monotonic()
        clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.clients)]
        checker, watch = threading.Thread(target=self._check), threading.Thread(target=self._watch)
        for thread in (*clients, checker, watch):
            thread.start()
        try:
            self._disturb()
        finally:
            self._stop.set()
            for thread in (*clients, watch):
                thread.join()
            self._answers.put(None)
            checker.join()
        for start, end, error in self._failed:
            inside = any(start < back and end > gone for gone, back in self.away)
            self.excused += inside
            if not inside:
                self.errors.append(error)

    def _disturb(self):
        """Change the gallery and kill processes, each at its times."""
        random = np.random.default_rng(self.seed)
        at = [(self.seconds * (number + 1) / (self.swaps + 1), self._change) for number in range(self.swaps)]
        at += [(self.seconds / 2 * (number + 0.5) / self.kills, self._kill) for number in range(self.kills)]
        for moment, disturb in sorted(at, key=lambda entry: entry[0]):
            self._stop.wait(max(0.0, self._start + moment - time.monotonic()))
            disturb(random)
        self._wait_for_version()
        self._stop.wait(max(0.0, self._start + self.seconds - time.monotonic()))

    def _publish(self, change, ids, *arguments, **options):
        if change is gallery.build:
            arguments = (*arguments, ids, [f"image-{number}" for number in ids.tolist()])
            options |= {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
        version = change(self.folder, *arguments, **options).version
        self.held[version] = np.sort(ids)

    def _change(self, random):
        ids = self.held[max(self.held)]
        kind = random.integers(0, 4)
        if kind == 0:
            new = random.permutation(np.setdiff1d(np.arange(_IDS), ids))[: random.integers(1, 500)]
            keys = [f"image-{number}" for number in new.tolist()]
            self._publish(gallery.append, np.append(ids, new), codes_of(new), new, keys)
        elif kind == 1:
            gone = random.permutation(ids)[: random.integers(1, 400)]
            self._publish(gallery.remove, np.setdiff1d(ids, gone), gone)
        elif kind == 2:
            self._publish(gallery.compact, ids)
        else:
            anew = random.permutation(_IDS)[: random.choice([500, 3000, 30_000])]
            self._publish(gallery.build, anew, codes_of(anew), overwrite=True)
        self._wait_for_version()

    def _kill(self, random):
        stubs = sorted(self.server.stubs)
        gone = time.monotonic()
        os.kill(stubs[random.integers(len(stubs))], signal.SIGKILL)
        while self.server.stubs & set(stubs):  # until other processes serve, all of them
            assert time.monotonic() < gone + 60, "the killed process did not come back"
            time.sleep(0.02)
        self._wait_for_version()
        self.away.append((gone, time.monotonic()))

    def _watch(self):
        for number in range(12, 21):
            self._stop.wait(max(0.0, self._start + self.seconds * number / 20 - time.monotonic()))
            with contextlib.suppress(psutil.NoSuchProcess):  # of a kill that a slow machine is late with
                self._sample()

    def _sample(self):
        process = psutil.Process(self.server.pid)
        family = [process, *process.children(recursive=True)]
        self.samples.append(
            Sample(
                time.monotonic() - self._start,
                sum(each.memory_info().rss for each in family),
                sum(each.num_fds() for each in family),
                sum(path.stat().st_blocks * 512 for path in SHARED_MEMORY.iterdir() if path.is_file()),
                psutil.Process().num_fds(),
            )
        )

    def _wait_for_version(self):
        end = time.monotonic() + 60
        with SearchClient(self.server.url, timeout=5) as client:
            while True:
                try:
                    if client.search(IMAGES[:1], 1).gallery_version[0] == max(self.held):
                        return
                except MissingError:  # a process is away
                    time.sleep(0.05)
                assert time.monotonic() < end, f"version {max(self.held)} was not swapped in"
                time.sleep(0.01)

    def _ask(self, number):
        random = np.random.default_rng([self.seed, number])
        with SearchClient(self.server.url, timeout=20) as client:
            while not self._stop.is_set():
                bad = random.random() < 0.1
                call, entry = self._bad_call(random) if bad else self._call(random)
                start = time.monotonic()
                try:
                    answer = call(client)
                except InputError as error:
                    if bad and entry in str(error):
                        self.refused += 1
                    else:
                        self._failed.append((start, time.monotonic(), error))
                except MissingError as error:
                    self._failed.append((start, time.monotonic(), error))
                    time.sleep(0.1)
                except Exception as error:  # a client that dies would ask no more, unseen
                    self.errors.append(error)
                else:
                    self._answers.put((*entry, answer) if not bad else (entry, None, None, answer))

    @staticmethod
    def _bad_call(random):
        return _BAD[random.integers(len(_BAD))]

    @staticmethod
    def _call(random):
        first, k = int(random.integers(0, 290)), int(random.choice([1, 3, 10, 50, 700]))
        rows = np.arange(first, first + int(random.choice([1, 1, 1, 2, 8])))
        asked = {}
        if random.random() < 0.3:
            asked["radius"] = int(random.integers(0, 40))
        if random.random() < 0.3:
            asked["allowed"] = random.integers(0, _IDS, int(random.choice([1, 50, 3000])))
        if random.random() < 0.2:
            asked["rerank"] = "asymmetric"
        if random.random() < 0.5:
            return (lambda client: client.search(IMAGES[rows], k, **asked)), (rows, k, asked)
        return (lambda client: client.search_files([_FILES[row] for row in rows], k, **asked)), (rows, k, asked)

    def _check(self):
        while (entry := self._answers.get()) is not None:
            rows, k, asked, answer = entry
            if k is None or not self.right(rows, k, asked, answer):  # an answer to a bad request is wrong too
                self.wrong.append(entry)
                continue
            self.answered += len(rows)
            self.versions_seen |= set(answer.gallery_version)
            if len(self.kept) < KEPT:
                self.kept.append(entry)

    def right(self, rows, k, asked, answer):
        """Whether an answer is the oracle's for the version that it names."""
        (version,) = set(answer.gallery_version)
        while version not in self.held:  # it served before the change had returned
            time.sleep(0.001)
        ids = self.held[version]
        if "allowed" in asked:
            ids = np.intersect1d(ids, asked["allowed"])
        for place, row in enumerate(rows):
            distances = _DISTANCES[row][ids % len(CODES)]
            order = np.argsort(distances, kind="stable")[:k]
            order = order[distances[order] <= asked.get("radius", PAD_DISTANCE)]
            if "rerank" in asked:
                order = order[np.lexsort((ids[order], _WEIGHTED[row][ids[order] % len(CODES)], distances[order]))]
            found = len(order)
            right = (
                answer.ids.shape == (len(rows), k)
                and np.array_equal(answer.ids[place, :found], ids[order])
                and np.array_equal(answer.distances[place, :found], distances[order])
                and answer.keys[place, :found].tolist() == [f"image-{number}" for number in ids[order].tolist()]
                and (answer.ids[place, found:] == PAD_ID).all()
                and (answer.distances[place, found:] == PAD_DISTANCE).all()
                and (answer.keys[place, found:] == "").all()
            )
            if not right:
                return False
        return True

    def report(self):
        """Return what was found, in a line each."""
        away = [back - gone for gone, back in self.away]
        first, last = self.samples[0], self.samples[-1]
        return "\n".join(
            [
                f"{self.answered:,} queries of {self.clients} clients answered in {self.seconds:.0f} s, "
                f"{len(self.wrong)} wrong, {len(self.held) - 1} swaps; {self.refused:,} bad requests refused",
                f"{len(self.errors)} good requests failed; {self.excused:,} more while a killed process was away, "
                f"{len(away)} times, {max(away, default=0):.1f} s at most",
                *(
                    f"{name}: {getattr(first, name):,} at {first.seconds:.0f} s, {getattr(last, name):,} at "
                    f"{last.seconds:.0f} s, {max(getattr(each, name) for each in self.samples):,} at most"
                    for name in ("resident", "descriptors", "shared_memory", "launcher_descriptors")
                ),
            ]
        )
