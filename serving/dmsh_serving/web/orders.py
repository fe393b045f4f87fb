"""The rankings that questions ask for, kept while their readers scroll."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from typing import Final

from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import InputError
from dmsh_serving.web.codes.collection import Collection
from dmsh_serving.web.codes.metadata import Metadata
from dmsh_serving.web.codes.ranking import Examples, Ranking, ranking_of
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.questions import Question

__all__ = ["Orders"]

MOST_KEPT: Final = 32  # an empty one has no bytes, but its question is kept
MOST_BYTES: Final = 256 << 20


class Orders:
    """Rankings of collections whose images have ``metadata``; the last ones that were asked for are kept."""

    def __init__(self, metadata: Metadata | None) -> None:
        self._metadata = metadata
        self._lock = threading.Lock()
        self._ordering = asyncio.Semaphore(available_cpus())  # more at once take more memory, and no less time
        self._kept: OrderedDict[object, Ranking] = OrderedDict()

    async def of(self, collection: Collection, examples: Examples, question: Question) -> Ranking:
        """Return the images of ``collection`` that ``question`` allows, ordered by ``examples``.

        Raises:
            InputError: there is no metadata that it could filter by, or no such column in it.
        """
        async with self._ordering:
            return await in_thread(self._of, collection, examples, question)

    def _of(self, collection: Collection, examples: Examples, question: Question) -> Ranking:
        among = repr((question.ids, question.where)).encode()  # may be 4 MiB of JSON: its digest is kept
        codes = (examples.like.tobytes(), examples.unlike.tobytes())
        name = (collection.version, *codes, hashlib.sha256(among).digest())
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        allowed = []
        if question.allowed_ids is not None:
            allowed.append(collection.places_of_ids(question.allowed_ids))
        if question.where:
            if self._metadata is None:
                raise InputError("there is no metadata to filter by: start the page with --metadata")
            allowed.append(self._metadata.places(collection, question.where))
        found = ranking_of(collection, examples, allowed)
        with self._lock:
            self._kept[name] = found
            while len(self._kept) > 1 and (
                len(self._kept) > MOST_KEPT or sum(each.nbytes for each in self._kept.values()) > MOST_BYTES
            ):
                self._kept.popitem(last=False)
        return found
