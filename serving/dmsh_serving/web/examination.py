"""The gallery examined on request, one examination at a time; what was found is kept for its version."""

import asyncio
import threading
from collections import OrderedDict
from typing import Any, Final

from dmsh_serving.errors import InputError
from dmsh_serving.web.codes import care
from dmsh_serving.web.codes.collection import Collection, GalleryFolder
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.questions import json_id
from dmsh_serving.web.pictures.originals import Originals

__all__ = ["Examinations"]

GROUPS: Final = 60
MEMBERS: Final = 24  # of a group that are described
MEMBERS_NAMED: Final = 1000  # by their ids
_KEPT: Final = 40  # more than the radii that anybody looks at, up to some 3 MB each

Found = dict[str, Any]


class Examinations:
    """What ``GET /v1/gallery/...`` answers about the current version of ``gallery``."""

    def __init__(self, gallery: GalleryFolder, originals: Originals) -> None:
        self._gallery, self._originals = gallery, originals
        self._lock = asyncio.Lock()
        self._found: OrderedDict[tuple[str, str, int], Found | str] = OrderedDict()  # or why there is nothing

    async def at_hand(self, name: str, radius: int = 0) -> Found | None:
        """Return what was found before, as plain JSON types, or None; arguments and errors are those of ``made``."""
        collection = await in_thread(self._gallery.current)
        found = self._found.get((collection.version, name, radius))
        return None if found is None else _given(found)

    async def made(self, name: str, radius: int = 0) -> Found:
        """Return what the examination ``name`` finds, as plain JSON types.

        ``duplicates`` are groups of images within ``radius`` of each other, ``shared`` those with the same code,
        ``bits`` the statistics of the bits.

        Raises:
            InputError: the gallery has too many codes, or pairs of them, for it.
        """
        collection = await in_thread(self._gallery.current)
        asked = (collection.version, name, radius)
        async with self._lock:
            if asked not in self._found:
                stop = threading.Event()
                try:
                    told = await in_thread(self._examined, collection, name, radius, stop, stop=stop)
                    self._found[asked] = {"gallery_version": collection.version, **told}
                except InputError as error:  # the next one would wait as long for it
                    self._found[asked] = str(error)
                while len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            return _given(self._found[asked])

    def _examined(self, collection: Collection, name: str, radius: int, stop: threading.Event) -> Found:
        if name == "duplicates":
            near = care.duplicates(collection, radius, groups=GROUPS, members=MEMBERS_NAMED, stop=stop)
            return {"radius": radius, **self._told(collection, near)}
        if name == "shared":
            return self._told(collection, care.shared(collection, groups=GROUPS, members=MEMBERS_NAMED))
        found = care.bit_statistics(collection)
        return {
            "bits": collection.bits,
            "count": len(collection),
            "sample": found.images,
            "distinct": found.distinct,
            "ones": found.ones.round(4).tolist(),
            "correlation": found.correlation.round(3).tolist(),
            "strongest": [{"bits": [i, j], "correlation": round(value, 3)} for i, j, value in found.strongest],
            "distances": found.distances.tolist(),
        }

    def _told(self, collection: Collection, found: care.Groups) -> dict[str, Any]:
        return {
            "groups": found.count,
            "images": found.images,
            "largest": [
                {
                    "count": group.count,
                    "ids": [json_id(number) for number in collection.ids[group.places].tolist()],
                    "images": [self._image(collection, place) for place in group.places[:MEMBERS].tolist()],
                }
                for group in found.groups
            ],
        }

    def _image(self, collection: Collection, place: int) -> dict[str, Any]:
        key = collection.key_at(place)
        width, height = self._originals.size(key) or (None, None)
        code = collection.codes[place].tobytes().hex()
        return {"id": json_id(int(collection.ids[place])), "key": key, "code": code, "width": width, "height": height}


def _given(found: Found | str) -> Found:
    if isinstance(found, str):
        raise InputError(found)
    return found
