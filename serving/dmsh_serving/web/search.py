"""A question -> its answer: examples become codes, Triton ranks them, and pages beyond its first are given exactly.

The first page of a plain search is what Triton's ranker answers. Pages after it, several examples and filters by
metadata are ordered here over the codes of the same version, by the same rule; without the gallery's folder, Triton is
asked for as many images as the page ends at.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dmsh_serving.codes import check_codes
from dmsh_serving.contract import MAX_K
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.web.answers import Page, Resolved, Teller, Times
from dmsh_serving.web.codes.collection import Collection, GalleryFolder
from dmsh_serving.web.codes.metadata import Metadata
from dmsh_serving.web.codes.ranking import Cursor, Examples, Ranking
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.problems import ProblemError
from dmsh_serving.web.http.questions import Box, Example, Question, json_id
from dmsh_serving.web.orders import Orders
from dmsh_serving.web.pictures.originals import Originals
from dmsh_serving.web.pictures.region import cut_out
from dmsh_serving.web.steps import Nearest, TritonSteps

__all__ = ["Searches"]

MOST_FROM_FOLDER: Final = 8  # a few letters ask for the work of a large file, and for several times its memory
_CUTS_AT_ONCE: Final = 2  # whole images in memory, of up to 470 MB each


class Searches:
    """Answers questions with Triton, the files of ``originals`` and, if they are at hand, the gallery and metadata."""

    def __init__(
        self,
        steps: TritonSteps,
        originals: Originals,
        gallery: GalleryFolder | None,
        metadata: Metadata | None = None,
    ) -> None:
        self._steps, self._originals, self._gallery = steps, originals, gallery
        self._teller = Teller(originals, metadata)
        self._cutting = asyncio.Semaphore(_CUTS_AT_ONCE)
        self._decoders = Decoders(_CUTS_AT_ONCE)
        self._opening = asyncio.Lock()
        self._from_folder = 0  # files that keys name and that are encoded now
        self._orders = Orders(metadata)

    def close(self) -> None:
        """End the processes that decode."""
        self._decoders.close()

    async def answer(self, question: Question) -> dict[str, Any]:
        """Return the page that ``question`` asks for, as plain JSON types.

        Raises:
            ProblemError: there is no such image, or the gallery or the model has changed since the page before.
            InputError: Triton refuses it.
            MissingError: Triton does not answer.
        """
        started = time.perf_counter()
        times = Times()
        if self._gallery is None and not question.is_plain:
            raise ProblemError(409, _WITHOUT_GALLERY)
        await self.check_model()
        await self._check_codes(question)
        if question.is_first and question.like[0].file is not None and not question.explain:
            resolved, page = await self._searched(question, question.like[0].file)
            times.total = time.perf_counter() - started
            return await self._told(question, page, [resolved], [], times)
        collection = None if self._gallery is None else await self._version_of(self._gallery, question.version)
        question = replace(question, fingerprint=question.fingerprint or (await self._steps.code_space()).fingerprint)
        if collection is not None and collection.fingerprint != question.fingerprint:
            raise ProblemError(410, _CHANGED)
        like = [await self.resolve(example, times, collection) for example in question.like]
        unlike = [await self.resolve(example, times, collection) for example in question.unlike]
        if any("logits" in each.said for each in (*like, *unlike)):
            await self._check_codes(question, anew=True)
        start = time.perf_counter()
        page = await self._page(question, collection, like, unlike)
        if collection is not None and page.version != collection.version:
            # Triton is a version ahead or behind for a moment, in which a stored example may be another image.
            there = await self._opened(self._gallery, page.version) if self._gallery else None
            if any("id" in each.said and not _is_in(there, each) for each in like):
                page = await self._ordered_page(collection, question, like, unlike)
        times.rank = time.perf_counter() - start
        times.total = time.perf_counter() - started
        return await self._told(question, page, like, unlike, times)

    async def check_model(self, *, anew: bool = False) -> None:
        """Raise :class:`ProblemError` if the gallery's codes are another model's than the one that Triton serves.

        Triton is asked at most once a second which one it is, unless it is asked ``anew``.
        """
        if self._gallery is None:
            return
        self._gallery.served = (await self._steps.code_space(anew=anew)).fingerprint
        if (await in_thread(self._gallery.current)).fingerprint != self._gallery.served:
            raise ProblemError(
                409, f"{self._gallery.folder} belongs to another model than the Triton serves: give --gallery its own"
            )

    async def _check_codes(self, question: Question, *, anew: bool = False) -> None:
        if anew or question.fingerprint is not None:
            space = await self._steps.code_space(anew=anew)
            if question.fingerprint not in (None, space.fingerprint):
                raise ProblemError(410, _ANOTHER_MODEL)

    async def resolve(self, example: Example, times: Times, collection: Collection | None) -> Resolved:
        """Return the code of an example: the one in ``collection``, or the encoder's.

        Raises:
            ProblemError: there is no such image.
        """
        if example.code is not None:
            bits = (await self._steps.code_space()).bits if collection is None else collection.bits
            check_codes(np.frombuffer(example.code, np.uint8)[None], bits)
            return Resolved(example.code)
        if collection is not None and example.file is None and example.box is None:
            place = await self._place(example, collection)
            if place is not None:
                said = {"id": json_id(int(collection.ids[place])), "key": collection.key_at(place)}
                return Resolved(collection.codes[place].tobytes(), said)
        if example.key is None and example.number is not None:
            raise ProblemError(404, f"no image has the id {example.number}" if self._gallery else _WITHOUT_GALLERY)
        return await self.encode(example, times)

    async def _place(self, example: Example, collection: Collection) -> int | None:
        if example.number is not None:
            place = await in_thread(collection.place_of_id, example.number)
            if place is not None and example.key in (None, collection.key_at(place)):
                return place
        if example.key is None:
            return None
        if not collection.are_keys_hashed:
            async with self._opening:  # the others would wait for the hashes in the threads that all share
                await in_thread(collection.place_of_key, example.key)
        return await in_thread(collection.place_of_key, example.key)

    async def encode(self, example: Example, times: Times) -> Resolved:
        """Return the code and the logits that the served encoder gives for a file, or the file that a key names.

        Raises:
            ProblemError: there is no such image, or too many files of the folder are encoded at the moment.
        """
        if example.file is not None:
            return await self._encoded(example, example.file, times)
        if example.key is None or example.key not in self._originals:
            raise ProblemError(404, f"no image has the key {example.key!r}")
        if example.box is not None:  # these searches have places of their own
            return await self._encoded(example, await in_thread(self._originals.read, example.key), times)
        if self._from_folder >= MOST_FROM_FOLDER:
            raise ProblemError(503, f"{MOST_FROM_FOLDER} files of the folder are being encoded: try again")
        self._from_folder += 1
        try:
            return await self._encoded(example, await in_thread(self._originals.read, example.key), times)
        finally:
            self._from_folder -= 1

    async def _encoded(self, example: Example, data: bytes, times: Times) -> Resolved:
        started = time.perf_counter()
        if example.box is not None:
            data = await self._cut(data, example.box)
        image = await self._steps.decode(data)
        decoded = time.perf_counter()
        encoded = await self._steps.encode(image)
        times.decode = (times.decode or 0) + decoded - started
        times.encode = (times.encode or 0) + time.perf_counter() - decoded
        said: dict[str, Any] = {"logits": [round(value, 6) for value in encoded.checked().logits[0].tolist()]}
        if example.key is not None:
            said["key"] = example.key
        return Resolved(encoded.code[0].tobytes(), said)

    async def _cut(self, data: bytes, box: Box) -> bytes:
        async with self._cutting:
            return await in_thread(cut_out, data, box, self._decoders)

    async def _page(
        self, question: Question, collection: Collection | None, like: list[Resolved], unlike: list[Resolved]
    ) -> Page:
        if collection is not None and not question.is_first:
            return await self._ordered_page(collection, question, like, unlike)
        if question.after is None:
            return await self._first_page(question, like[0])
        return await self._later_page(question, like[0], question.after)

    async def _searched(self, question: Question, file: bytes) -> tuple[Resolved, Page]:
        """Answer the first page of a search by a file with one call."""
        box = question.like[0].box
        data = file if box is None else await self._cut(file, box)
        k = min(question.k + 1, MAX_K)
        code, nearest = await self._steps.search(data, k, radius=question.radius, ids=question.allowed_ids)
        return Resolved(code[0].tobytes()), self._page_of(question, nearest, k)

    async def _first_page(self, question: Question, example: Resolved) -> Page:
        k = min(question.k + 1, MAX_K)  # one more tells whether there is a next page
        nearest = await self._nearest(question, example, k)
        if question.version not in (None, nearest.version):
            raise ProblemError(410, _CHANGED)
        return self._page_of(question, nearest, k)

    @staticmethod
    def _page_of(question: Question, nearest: Nearest, k: int) -> Page:
        given = slice(min(question.k, len(nearest.ids)))
        return Page(
            nearest.version,
            nearest.ids[given].tolist(),
            nearest.distances[given].tolist(),
            nearest.keys[given],
            more=len(nearest.ids) == k,
        )

    async def _later_page(self, question: Question, example: Resolved, after: Cursor) -> Page:
        """Ask Triton for the nearest images, ever more of them, until the page after the cursor is among them."""
        k = 2 * question.k
        while True:
            k = min(k, MAX_K)
            nearest = await self._nearest(question, example, k)
            if question.version not in (None, nearest.version):
                raise ProblemError(410, _CHANGED)
            order = Ranking(np.arange(len(nearest.ids)), nearest.distances, nearest.ids)
            start = order.after(after)
            if k == MAX_K or len(nearest.ids) < k or start + question.k < k:
                break
            k *= 2
        given = slice(start, min(start + question.k, len(nearest.ids)))
        return Page(
            nearest.version,
            nearest.ids[given].tolist(),
            nearest.distances[given].tolist(),
            nearest.keys[given],
            more=given.stop < len(nearest.ids),
            truncated=k == MAX_K == len(nearest.ids) == given.stop,
        )

    async def _nearest(self, question: Question, example: Resolved, k: int) -> Nearest:
        code = np.frombuffer(example.code, np.uint8)[None]
        return await self._steps.rank(code, k, radius=question.radius, ids=question.allowed_ids)

    async def _ordered_page(
        self, collection: Collection, question: Question, like: list[Resolved], unlike: list[Resolved]
    ) -> Page:
        codes = [
            np.frombuffer(b"".join(each.code for each in examples), np.uint8).reshape(-1, collection.codes.shape[1])
            for examples in (like, unlike)
        ]
        order = await self._orders.of(collection, Examples(*codes), question)
        start = 0 if question.after is None else order.after(question.after)
        total = order.within(question.radius)
        given = slice(start, max(start, min(start + question.k, total)))
        return Page(
            collection.version,
            order.ids[given].tolist(),
            order.scores[given].tolist(),
            [collection.key_at(place) for place in order.places[given].tolist()],
            more=given.stop < total,
            total=total,
        )

    async def _version_of(self, gallery: GalleryFolder, version: str | None) -> Collection:
        """Return the version of the gallery that a question names, or the current one.

        Raises:
            ProblemError: it is gone, or has another model's codes than the current one.
        """
        current = await in_thread(gallery.current)
        if version is None:
            return current
        collection = await self._opened(gallery, version)
        if collection is None or collection.fingerprint != current.fingerprint:
            raise ProblemError(410, _CHANGED)
        return collection

    async def _opened(self, gallery: GalleryFolder, version: str) -> Collection | None:
        held = gallery.held(version)
        if held is not None:
            return held
        async with self._opening:  # who waits for it here takes none of the threads
            return await in_thread(gallery.at, version)

    async def _told(
        self, question: Question, page: Page, like: list[Resolved], unlike: list[Resolved], times: Times
    ) -> dict[str, Any]:
        is_new = self._teller.is_new(page.version)
        await self._check_codes(question, anew=is_new)  # a new model has a new version
        await self._teller.look_for_files(page.version)
        collection = None
        if self._gallery is not None:
            collection = await self._opened(self._gallery, page.version)
            if collection is None:  # of another model, perhaps, which Triton serves since the example was looked at
                await self.check_model(anew=True)
        return await self._teller.told(page, collection, like, unlike, times)


def _is_in(collection: Collection | None, example: Resolved) -> bool:
    """Say whether a stored example has the same code in another version."""
    place = None if collection is None else collection.place_of_id(int(example.said["id"]))
    return collection is not None and place is not None and collection.codes[place].tobytes() == example.code


_ANOTHER_MODEL: Final = "the codes are another model's than the one that is served: search again"
_CHANGED: Final = "the gallery has changed since this search began: search again"
_WITHOUT_GALLERY: Final = "this needs the gallery's codes: start the page with --gallery FOLDER"
