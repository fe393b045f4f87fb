"""Searches of a page over a Triton made of numpy."""

import asyncio
from types import SimpleNamespace

import numpy as np

from dmsh_serving.codes import Encoded, uniform_codes
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.web.codes.ranking import Cursor
from dmsh_serving.web.http.questions import Example, Question
from dmsh_serving.web.steps import Nearest

CODES = uniform_codes(300, 64, 0)
CODES[:, 1:] &= 0x01  # many at equal distance
SPACE = {"bits": 64, "fingerprint": "ab" * 32}


class Steps:
    """What TritonSteps does, by the slow obvious search; a file is its code."""

    def __init__(self, version="00000001-aaaaaaaa", fingerprint="ab" * 32):
        self.version, self.fingerprint, self.asked, self.decoded = version, fingerprint, [], []
        self.since = fingerprint  # of the model that is served since it was asked last

    async def code_space(self, *, anew=False):
        return SimpleNamespace(bits=64, fingerprint=self.since if anew else self.fingerprint)

    async def decode(self, file):
        self.decoded.append(file)
        return np.frombuffer(file, np.uint8)

    async def encode(self, image):
        return Encoded(image[None], np.where(np.unpackbits(image[None], axis=1), 1.0, -1.0).astype(np.float32))

    async def search(self, file, k, *, radius, ids):
        code = np.frombuffer(file, np.uint8)[None]
        return code, await self.rank(code, k, radius=radius, ids=ids)

    async def rank(self, code, k, *, radius, ids):
        self.asked.append(k)
        distances, rows = search_oracle(code, CODES, len(CODES))
        kept = (distances[0] <= (64 if radius is None else radius)) & (
            np.isin(rows[0], ids) if ids is not None else True
        )
        ids, distances = rows[0][kept][:k], distances[0][kept][:k]
        return Nearest(ids, distances, [f"{number}.png" for number in ids], self.version)


def answer(searches, **asked):
    return asyncio.run(searches.answer(Question(**asked)))


def pages(searches, k, **asked):
    found, after, version = [], None, None
    while True:
        page = answer(searches, k=k, after=after, version=version, **asked)
        found += [image["id"] for image in page["images"]]
        if page["next"] is None:
            return found, page
        after, version = Cursor(page["next"]["distance"], page["next"]["id"]), page["gallery_version"]


LIKE = (Example(code=CODES[5].tobytes()),)
