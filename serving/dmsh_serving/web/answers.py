"""A page of an order -> what is told of it: the images with their sizes, codes and attributes, and where it goes on."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from dmsh_serving.web.codes.collection import Collection
from dmsh_serving.web.codes.metadata import Metadata
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.questions import json_id
from dmsh_serving.web.pictures.originals import Originals

__all__ = ["MOST_SIZED", "SHORT_ANSWER", "Page", "Resolved", "Teller", "Times"]

_LOOKING_SECONDS: Final = 0.5
SHORT_ANSWER: Final = 200  # images; a longer one is put together in a thread
MOST_SIZED: Final = 1000  # images of an answer; the page asks for no more at once
_MOST_SIZING: Final = 2  # short answers, and as many long ones, of the threads that all share
_SIZING_SECONDS: Final = 2.0


@dataclass
class Times:
    """How long each step took, in seconds, as this process saw it; None for a step that was not asked for by itself."""

    decode: float | None = None
    encode: float | None = None
    rank: float | None = None
    total: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return plain JSON types, in milliseconds."""
        return {f"{name}_ms": None if took is None else round(took * 1e3, 3) for name, took in vars(self).items()}


@dataclass
class Resolved:
    """An example with its code (B bytes), and its logits if an encoder was asked."""

    code: bytes
    said: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"code": self.code.hex(), **self.said}


@dataclass(frozen=True)
class Page:
    """One page of an order: ids, scores and keys, and whether the order goes on."""

    version: str
    ids: list[int]
    scores: list[int]
    keys: list[str]
    more: bool
    truncated: bool = False
    total: int | None = None


class Teller:
    """Tells of pages, with what ``originals`` and ``metadata`` say of their images."""

    def __init__(self, originals: Originals, metadata: Metadata | None) -> None:
        self._originals, self._metadata = originals, metadata
        self._versions: set[str] = set()  # that answered, and whose files are known
        self._looked_for: set[str] = set()  # also those for which the folder was not read
        self._looking: asyncio.Future[None] | None = None
        self._sizing, self._sizing_many = (asyncio.Semaphore(_MOST_SIZING) for _ in range(2))

    def is_new(self, version: str) -> bool:
        """Say whether nobody has looked for the files of a version yet."""
        return version not in self._looked_for

    async def look_for_files(self, version: str) -> None:
        """Have the folder of images read, once for all who search, and wait ``_LOOKING_SECONDS`` for that at most.

        A large folder takes longer; until it is read, new images are shown without a picture.
        """
        if version in self._versions:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._looked(version))
        if self.is_new(version):
            await asyncio.wait({self._looking}, timeout=_LOOKING_SECONDS)

    def _look_again(self, page: Page) -> None:
        """Have the folder read again for those who ask next if a file is missed: files may come later than codes."""
        reads = self._looking is not None and not self._looking.done()
        if not reads and self._originals.is_old and any(key and key not in self._originals for key in page.keys):
            self._looking = asyncio.ensure_future(self._looked(page.version))

    async def _looked(self, version: str) -> None:
        if await in_thread(self._originals.refresh):
            self._versions.add(version)
        self._looked_for.add(version)

    async def told(
        self, page: Page, collection: Collection | None, like: list[Resolved], unlike: list[Resolved], times: Times
    ) -> dict[str, Any]:
        """Return what is told of a page, as plain JSON types."""
        self._look_again(page)
        await self._read_sizes(page.keys[:MOST_SIZED])
        if len(page.ids) <= SHORT_ANSWER:
            images = self._images(page, collection)
        else:
            images = await in_thread(self._images, page, collection)
        last = images[-1] if images and page.more else None
        return {
            "query": {"like": [each.to_dict() for each in like], "unlike": [each.to_dict() for each in unlike]},
            "gallery_version": page.version,
            "images": images,
            "next": last and {"distance": last["distance"], "id": last["id"]},
            "total": page.total,
            "truncated": page.truncated,
            "times": times.to_dict(),
        }

    async def _read_sizes(self, keys: list[str]) -> None:
        """Get to know the sizes of images, for ``_SIZING_SECONDS`` at most: the rest is told without."""
        if self._originals.are_sized(keys):
            return
        stop = threading.Event()
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(_SIZING_SECONDS),
                self._sizing if len(keys) <= SHORT_ANSWER else self._sizing_many,
            ):
                await in_thread(self._originals.read_sizes, keys, stop, stop=stop)

    def _images(self, page: Page, collection: Collection | None) -> list[dict[str, Any]]:
        codes: list[str | None] = [None] * len(page.ids)
        if collection is not None:
            places = [collection.place_of_id(number) for number in page.ids]
            codes = [None if place is None else collection.codes[place].tobytes().hex() for place in places]
        images = []
        for number, score, key, code in zip(page.ids, page.scores, page.keys, codes, strict=True):
            size = self._originals.known_size(key)
            images.append(
                {
                    "id": json_id(number),
                    "key": key,
                    "distance": score,
                    "width": size and size[0],
                    "height": size and size[1],
                    "code": code,
                    "attributes": None if self._metadata is None else self._metadata.attributes(key),
                }
            )
        return images
