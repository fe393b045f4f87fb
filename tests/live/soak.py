"""Clients that ask a live server without pause while its gallery changes, and the oracle's word on every answer."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import tiny_model
from live_world import CODES, IMAGES, png

from dmsh_serving import gallery
from dmsh_serving.client import SearchClient
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID

CLIENTS = 4
_IDS = 60_000
_DISTANCES = np.array([np.unpackbits(CODES ^ code, axis=1).sum(axis=1, dtype=np.uint8) for code in CODES])
_DIFFERS = (np.unpackbits(CODES, axis=1)[:, None] != np.unpackbits(CODES, axis=1)[None]).astype(np.float64)
_WEIGHTED = np.einsum("ib,ijb->ij", np.abs(tiny_model.logits_of(IMAGES)), _DIFFERS)  # whole numbers, so exact
_FILES = [png(image) for image in IMAGES]


def codes_of(ids):
    """Image ``id % 300`` has id ``id``: many equal codes, so that large galleries are clustered and small ones not."""
    return CODES[ids % len(CODES)]


@dataclass
class Soak:
    """One run: ``queries`` images are asked for while the gallery changes ``swaps`` times.

    ``held`` is, of each version, the ids in it, as the changes say, not as the gallery does.
    """

    server: object
    folder: object
    queries: int
    swaps: int
    seed: int = 0
    held: dict = field(default_factory=dict)
    answers: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    asked: int = 0
    seconds: float = 0.0
    all_served: threading.Event = field(default_factory=threading.Event)

    def run(self):
        self._publish(gallery.build, np.arange(30_000), codes_of(np.arange(30_000)), overwrite=True)
        clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self._wait_for_version()
        start = time.monotonic()
        for client in clients:
            client.start()
        random = np.random.default_rng(self.seed)
        try:
            for number in range(1, self.swaps + 1):
                while self.asked < self.queries * number / (self.swaps + 1) and not self.errors:
                    time.sleep(0.002)
                self._change(random)
                self._wait_for_version()
        finally:
            self.all_served.set()
        for client in clients:
            client.join()
        self.seconds = time.monotonic() - start

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

    def _wait_for_version(self):
        end = time.monotonic() + 30
        with SearchClient(self.server.url) as client:
            while client.search(IMAGES[:1], 1).gallery_version[0] != max(self.held):
                assert time.monotonic() < end, f"version {max(self.held)} was not swapped in"
                time.sleep(0.01)

    def _ask(self, number):
        random = np.random.default_rng([self.seed, number])
        with SearchClient(self.server.url) as client:
            last = False
            while not last:
                # The last request begins after the last swap, however late that came.
                last = self.all_served.is_set() and self.asked >= self.queries
                first, k = int(random.integers(0, 290)), int(random.choice([1, 3, 10, 50, 700]))
                rows = np.arange(first, first + int(random.choice([1, 1, 1, 2, 8])))
                asked = {}
                if random.random() < 0.3:
                    asked["radius"] = int(random.integers(0, 40))
                if random.random() < 0.3:
                    asked["allowed"] = random.integers(0, _IDS, int(random.choice([1, 50, 3000])))
                if random.random() < 0.2:
                    asked["rerank"] = "asymmetric"
                try:
                    if random.random() < 0.5:
                        answer = client.search(IMAGES[rows], k, **asked)
                    else:
                        answer = client.search_files([_FILES[row] for row in rows], k, **asked)
                except Exception as error:  # counted, and shown
                    self.errors.append(error)
                    return
                self.answers.append((rows, k, asked, answer))
                self.asked += len(rows)

    def wrong(self):
        """Return the answers that the oracle does not give for the one version that each of them names."""
        return [entry for entry in self.answers if not self._right(*entry)]

    def _right(self, rows, k, asked, answer):
        (version,) = set(answer.gallery_version)
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

    def versions_seen(self):
        return {version for *_, answer in self.answers for version in answer.gallery_version}
