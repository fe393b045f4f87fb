"""The gallery examined on request, one examination at a time; what was found is kept for its version."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from dmsh_serving.web.codes import care
from dmsh_serving.web.codes.collection import Collection, GalleryFolder
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.questions import json_id
from dmsh_serving.web.pictures.originals import Originals

__all__ = ["Examinations"]

GROUPS: Final = 60
MEMBERS: Final = 24  # of a group that are described
MEMBERS_NAMED: Final = 1000  # by their ids
_KEPT: Final = 16


class Examinations:
    """What ``GET /v1/gallery/...`` answers about the current version of ``gallery``."""

    def __init__(self, gallery: GalleryFolder, originals: Originals) -> None:
        self._gallery, self._originals = gallery, originals
        self._lock = asyncio.Lock()
        self._found: OrderedDict[tuple[object, ...], dict[str, Any]] = OrderedDict()

    async def duplicates(self, radius: int) -> dict[str, Any]:
        """Return groups of images within ``radius`` of each other, as plain JSON types."""

        def examined(collection: Collection, stop: threading.Event) -> dict[str, Any]:
            found = care.duplicates(collection, radius, groups=GROUPS, members=MEMBERS_NAMED, stop=stop)
            return {"radius": radius, **self._told(collection, found)}

        return await self._kept(("duplicates", radius), examined)

    async def shared(self) -> dict[str, Any]:
        """Return groups of images with the same code, as plain JSON types."""

        def examined(collection: Collection, _: threading.Event) -> dict[str, Any]:
            return self._told(collection, care.shared(collection, groups=GROUPS, members=MEMBERS_NAMED))

        return await self._kept(("shared",), examined)

    async def bits(self) -> dict[str, Any]:
        """Return the statistics of the bits, as plain JSON types."""

        def examined(collection: Collection, _: threading.Event) -> dict[str, Any]:
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

        return await self._kept(("bits",), examined)

    async def _kept(
        self, name: tuple[object, ...], examined: Callable[[Collection, threading.Event], dict[str, Any]]
    ) -> dict[str, Any]:
        collection = await in_thread(self._gallery.current)
        name = (collection.version, *name)
        async with self._lock:
            if name not in self._found:
                stop = threading.Event()
                found = await in_thread(examined, collection, stop, stop=stop)
                self._found[name] = {"gallery_version": collection.version, **found}
                while len(self._found) > _KEPT:
                    self._found.popitem(last=False)
        return self._found[name]

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
