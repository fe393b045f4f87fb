"""The files that the gallery's keys name. A key is looked up in an index of the folder, and never joined to a path."""

import os
import threading
import time
from pathlib import Path
from typing import Final

from dmsh_serving.errors import InputError
from dmsh_serving.files import open_regular, read_regular
from dmsh_serving.images.decode import MAX_FILE_BYTES, size_from_header
from dmsh_serving.images.read import image_paths

__all__ = ["Originals", "Size"]

_FRESH_SECONDS: Final = 1.0
_OLD_SECONDS: Final = 10.0
_OLD_READS: Final = 50  # an index is old after so many times what it took to read: 2% of the time of one thread

Size = tuple[int, int]
"""Width and height in pixels, upright."""


class Originals:
    """The image files below ``folder``, by the key that ``dmsh-serve gallery build --images`` gave each.

    Raises:
        InputError: no folder, or one of its folders is a link.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sizes: dict[str, Size | None] = {}
        self._took = 0.0
        self._files, self._read_at = self._indexed(), time.monotonic()
        self.indexed_at = self._read_at
        """The monotonic time at which the folder was read."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    @property
    def is_old(self) -> bool:
        """Whether files may have come that are worth another look at the folder, if one is missed."""
        return time.monotonic() > self._read_at + max(_OLD_SECONDS, _OLD_READS * self._took)

    def refresh(self) -> bool:
        """Read the folder again, unless that was tried within the last second, and return whether it was read.

        One that cannot be read changes nothing.
        """
        with self._lock:
            if time.monotonic() - self._read_at <= _FRESH_SECONDS:
                return False
            try:
                self._files, self._sizes = self._indexed(), {}
                self.indexed_at = time.monotonic()
            except (InputError, OSError):
                return False
            finally:
                self._read_at = time.monotonic()
            return True

    def path(self, key: str) -> Path | None:
        """Return the file that ``key`` names, or None."""
        return self._files.get(key)

    def read(self, key: str) -> bytes:
        """Return the bytes of the file that ``key`` names.

        Raises:
            InputError: there is none, it is gone or no regular file, or it is larger than any image that is decoded.
        """
        path = self.path(key)
        if path is None:
            raise InputError(f"no image has the key {key!r}")
        try:
            return read_regular(path, MAX_FILE_BYTES)
        except OSError as error:
            raise InputError(f"{key}: {error.strerror or 'cannot be read'}") from error

    def known_size(self, key: str) -> Size | None:
        """Return the image's size if it was looked at before; never touches the disk."""
        return self._sizes.get(key)

    def size(self, key: str) -> Size | None:
        """Return the size that the image's header states, or None if there is no such image."""
        sizes = self._sizes  # a refresh puts another in its place
        if key not in sizes:
            path = self.path(key)
            sizes[key] = None if path is None else _size_of(path, key)
        return sizes[key]

    def read_sizes(self, keys: list[str], stop: threading.Event) -> None:
        """Get to know the sizes of all ``keys``, unless ``stop`` is set before."""
        for key in keys:
            if stop.is_set():
                return
            self.size(key)

    def are_sized(self, keys: list[str]) -> bool:
        """Say whether the sizes of all ``keys`` are known, so that the disk need not be asked."""
        return all(key in self._sizes or key not in self._files for key in keys)

    def _indexed(self) -> dict[str, Path]:
        began = time.monotonic()
        found = {path.relative_to(self._folder).as_posix(): path for path in image_paths(self._folder)}
        self._took = time.monotonic() - began
        return found


def _size_of(path: Path, key: str) -> Size | None:
    try:
        with open_regular(path) as file:
            return size_from_header(file, key) if os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES else None
    except Exception:  # a decoder fed hostile bytes raises nearly anything; such a file is shown as missing
        return None
