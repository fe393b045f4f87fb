"""Small copies of images to look at: decoded anew, so that nothing of a file but its pixels is ever sent.

They are kept on disk, in a folder with a bound: the ones that were not looked at for the longest time go first. One
that cannot be kept, for a full disk, is made anew each time.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from PIL import Image

from dmsh_serving.files import ABSENT, state_of
from dmsh_serving.images.decode import rgb_from_bytes
from dmsh_serving.web.pictures.originals import Originals

__all__ = ["MEDIA_TYPE", "SHOWN_SECONDS", "THUMBNAIL_BOX", "VIEW_BOX", "Thumbnails", "rendered"]

THUMBNAIL_BOX: Final = (560, 320)
VIEW_BOX: Final = (1600, 1600)
MEDIA_TYPE: Final = "image/webp"
_LOSSLESS_PIXELS: Final = 64 * 64
_QUALITY: Final = 82
_RECIPE: Final = f"webp {_QUALITY}"
SHOWN_SECONDS: Final = 600  # until a browser asks again whether a file has changed
_MOST_HELD_BYTES: Final = 64 << 20
_SUFFIX: Final = ".webp"
_TAG: Final = re.compile("[0-9a-f]{40}")
_log = logging.getLogger(__name__)
_SWEEP_TO: Final = 0.9  # of the bound, so that not every new file sweeps


def rendered(data: bytes, box: tuple[int, int], name: str) -> bytes:
    """Return an image file as WebP that fits into ``box`` (width, height), upright, without any metadata.

    Raises:
        InputError: no image, or one that no encoder here would take either.
    """
    image = rgb_from_bytes(data, name=name, at_least=min(box))
    image.thumbnail(box, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.tobytes())  # carries no EXIF, no profile, no comment
    plain.save(file, "WEBP", quality=_QUALITY, method=2, lossless=image.width * image.height <= _LOSSLESS_PIXELS)
    return file.getvalue()


class Thumbnails:
    """Copies of ``originals`` that fit into a box, made when first asked for; ``folder`` keeps ``most_bytes``."""

    def __init__(self, originals: Originals, folder: Path, most_bytes: int) -> None:
        self._originals, self._folder, self._most_bytes = originals, folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, str, bytes]] = {}
        self._held_bytes = 0
        self._keeps = True  # what was last made
        self._bytes = sum(_file_size(path) for path in self._own_files())

    def tag(self, key: str, box: tuple[int, int] = THUMBNAIL_BOX) -> str | None:
        """Return what names the content of a key's copy, or None if the key has no file."""
        path = self._originals.path(key)
        if path is None:
            return None
        try:
            state = state_of(path, by_change=True)
        except OSError:
            return None
        if state == ABSENT:
            return None
        said = f"{_RECIPE}\n{box}\n{path.absolute()}\n{state}"
        return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()[:40]

    def at_hand(self, key: str) -> tuple[str, bytes] | None:
        """Return tag and thumbnail of ``key`` if they were read within the last 10 minutes; never touches the disk.

        Those from before the folder was read again are not given: a file of it may have been edited.
        """
        held = self._held.get(key)
        if held is None or max(self._originals.indexed_at, time.monotonic() - SHOWN_SECONDS) > held[0]:
            return None
        return held[1:]

    def hold(self, key: str, tag: str, data: bytes) -> None:
        """Keep a thumbnail in memory too: a row of cards is asked for at once, and again on the way back."""
        with self._lock:
            self._held_bytes += len(data) - len(self._held.pop(key, (0, "", b""))[2])
            self._held[key] = (time.monotonic(), tag, data)
            while self._held_bytes > _MOST_HELD_BYTES:
                self._held_bytes -= len(self._held.pop(next(iter(self._held)))[2])

    def kept(self, tag: str) -> bytes | None:
        """Return the copy that has the tag ``tag``, WebP, or None if it is yet to be made."""
        try:
            # A link in a folder that another user can write would name a file of this process's user.
            handle = os.open(self._path(tag), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                data = file.read()
                with contextlib.suppress(OSError):
                    os.utime(handle)  # looked at just now
        except OSError:
            return None
        return data or None  # a crash may leave the name without the data

    def looked_up(
        self, keys: Iterable[str], box: tuple[int, int] = THUMBNAIL_BOX
    ) -> dict[str, tuple[str, bytes | None]]:
        """Return :meth:`tag` and :meth:`kept` of each of ``keys`` that has a file."""
        tags = {key: self.tag(key, box) for key in keys}
        return {key: (tag, self.kept(tag)) for key, tag in tags.items() if tag is not None}

    def made(self, key: str, tag: str, box: tuple[int, int] = THUMBNAIL_BOX) -> bytes:
        """Make and keep the copy of ``key``, WebP, unless another did meanwhile; ``tag`` is :meth:`tag`'s.

        Raises:
            InputError: the file is no image.
        """
        kept = self.kept(tag)
        if kept is not None:
            return kept
        data = rendered(self._originals.read(key), box, key)
        self._keep(self._path(tag), data)
        return data

    def _own_files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob(f"*{_SUFFIX}") if _TAG.fullmatch(path.stem))

    def _path(self, tag: str) -> Path:
        return self._folder / f"{tag}{_SUFFIX}"  # a digest: no part of a key reaches the file system

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            handle, name = tempfile.mkstemp(dir=self._folder)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)  # no fsync: what a crash takes is made again
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            if self._keeps:
                _log.warning("thumbnails are not kept in %s: %s", self._folder, error.strerror or error)
            self._keeps = False
            return
        with self._lock:
            self._keeps = True
            self._bytes += len(data)
            if self._bytes > self._most_bytes:
                self._sweep()

    def _sweep(self) -> None:
        """Delete the files that were not looked at for the longest time."""
        found = []
        for path in self._own_files():
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        found.sort(reverse=True)
        self._bytes = 0
        for _, size, path in found:
            if self._bytes + size > self._most_bytes * _SWEEP_TO:
                path.unlink(missing_ok=True)
            else:
                self._bytes += size


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
