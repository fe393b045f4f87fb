"""Where images to encode come from: a folder, a Parquet file, or objects in S3. A worker opens them by itself.

Images have an order, which does not depend on who reads them: by path below the folder, by row, by object name. A shard
is a range in it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.files import read_regular, state_of
from dmsh_serving.images.decode import MAX_FILE_BYTES
from dmsh_serving.images.read import image_paths, is_no_image, refuse_away, says_no_image

__all__ = ["GONE", "Image", "Source", "source_of"]

GONE: Final = "does not exist"  # of an image that was listed: it may come back
S3: Final = "s3://"
_ID, _KEY, _IMAGE = "id", "key", "image"


@dataclass(frozen=True)
class Image:
    """One image file.

    Attributes:
        id: its id, 0 or more.
        key: its name.
        data: its bytes, or one line that says why they cannot be read.
    """

    id: int
    key: str
    data: bytes | str


class Source(Protocol):
    """Images in a fixed order. It is sent to workers by pickle."""

    @property
    def count(self) -> int:
        """The number of images."""

    def digest(self, start: int, stop: int) -> str:
        """Return a SHA-256 (hex) of place and state of the images from ``start`` to ``stop``; none is read."""

    def images(self, start: int, stop: int) -> Iterator[Image]:
        """Yield the images from ``start`` to ``stop``.

        Raises:
            InputError: the source is damaged.
            UnavailableError: one cannot be read now, as on a disk that is away: that says nothing about the image.
        """


def source_of(text: str) -> Source:
    """Return the images that ``text`` names: a folder, FILE.parquet, or s3://bucket/prefix.

    Raises:
        InputError: nothing there, or no images.
        MissingError: pyarrow is not installed.
        UnavailableError: S3 does not answer.
    """
    found: Source
    path = Path(text)
    if text.startswith(S3):
        found = _Objects(text)
    elif path.is_dir():
        found = _Folder(path)
    elif path.suffix == ".parquet":
        found = _Table(path)
    else:
        raise InputError(f"{text} is no folder, no .parquet file and no s3:// address: name images")
    if not found.count:
        raise InputError(f"{text} holds no images")
    return found


@dataclass(frozen=True)
class _Folder:
    """A folder on a disk that every worker sees; ids count the files in the order of their paths."""

    folder: Path

    @cached_property
    def _paths(self) -> list[Path]:
        return image_paths(self.folder)

    @property
    def count(self) -> int:
        return len(self._paths)

    def digest(self, start: int, stop: int) -> str:
        paths = self._paths[start:stop]
        lines = [f"{path.relative_to(self.folder).as_posix()}\t{state_of(path, chr(9))}" for path in paths]
        return _sha256(str(self.folder.resolve()), start, lines)

    def images(self, start: int, stop: int) -> Iterator[Image]:
        for number, path in enumerate(self._paths[start:stop], start):
            yield Image(number, path.relative_to(self.folder).as_posix(), _read(path))


@dataclass(frozen=True)
class _Table:
    """A Parquet file with a column ``image`` of file bytes, and optionally ``key`` and ``id``."""

    path: Path

    @cached_property
    def _state(self) -> str:
        return state_of(self.path, "\t")

    @cached_property
    def _file(self) -> Any:
        pa, parquet = _pyarrow()
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist or is not a file")
        self._refuse_another()
        try:
            file = parquet.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.path} is not a Parquet file that can be read: {str(error).splitlines()[0]}"
            ) from None
        names = file.schema_arrow.names
        if _IMAGE not in names:
            raise InputError(f"{self.path} has no column {_IMAGE!r}: it has {', '.join(names)}")
        if twice := [name for name in (_IMAGE, _KEY, _ID) if names.count(name) > 1]:
            raise InputError(f"{self.path} has more than one column {twice[0]!r}: give each its own name")
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_state": self._state}  # an open file does not travel

    @property
    def count(self) -> int:
        return int(self._file.metadata.num_rows)

    def digest(self, start: int, stop: int) -> str:
        return _sha256(str(self.path.resolve()), start, [f"{self._state}\t{stop}"])

    def images(self, start: int, stop: int) -> Iterator[Image]:
        pa, _ = _pyarrow()
        names = [name for name in (_ID, _KEY, _IMAGE) if name in self._file.schema_arrow.names]
        first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            own = range(max(start, first), min(stop, first + rows))
            if own:
                try:
                    table = self._file.read_row_group(group, names).slice(own[0] - first, len(own))
                except (pa.ArrowException, OSError) as error:
                    raise InputError(f"{self.path}: row group {group} cannot be read: {error}") from None
                columns = {name: _values(table[name], pa) for name in names}
                for place, row in enumerate(own):
                    yield self._image(row, {name: values[place] for name, values in columns.items()})
            first += rows
        self._refuse_another()

    def _refuse_another(self) -> None:
        """Refuse a file that was put in the place of the one whose rows were counted: it has others."""
        if state_of(self.path, "\t") != self._state:
            raise InputError(f"{self.path} was changed while it was read: run it again")

    def _image(self, row: int, values: dict[str, Any]) -> Image:
        number, data = values.get(_ID, row), values[_IMAGE]
        key = values.get(_KEY) or f"{self.path.name}[{row}]"
        if type(number) is not int or not 0 <= number < 2**63 or not isinstance(key, str):
            raise InputError(f"{self.path}: row {row} has the id {number!r} and the key {key!r}: ids are 0 or more")
        return Image(number, key, data if isinstance(data, bytes) else "no bytes of a file")


def _values(column: Any, pa: Any) -> list[Any]:
    """Return what ``column`` holds; bytes of a text that are no UTF-8 become what they become in a file's name."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # Parquet's readers do not look whether strings are text
        found = [value and value.decode(errors="surrogateescape") for value in column.cast(pa.binary()).to_pylist()]
    return found


@dataclass(frozen=True)
class _Objects:
    """Objects in S3 below a prefix; ids count them in the order of their names.

    Region, endpoint and credentials come from the usual environment variables (``AWS_ENDPOINT_URL`` and others).
    """

    address: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        pa, _ = _pyarrow()
        from pyarrow import fs

        try:
            found: tuple[Any, str] = fs.FileSystem.from_uri(self.address)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.address} is no address in S3: {error}") from None
        return found

    def __getstate__(self) -> dict[str, Any]:
        # With what was listed: a worker's own list would have other objects, or others in a shard's range.
        return {"address": self.address, "_objects": self._objects}

    @cached_property
    def _objects(self) -> list[tuple[str, int, int]]:
        """The path below the prefix, size and time of change of each object that may be an image."""
        from pyarrow import fs

        system, root = self._place
        try:
            found = system.get_file_info(fs.FileSelector(root, recursive=True))
        except FileNotFoundError:
            raise InputError(f"{self.address} holds no images: there is no such bucket or prefix") from None
        except OSError as error:
            raise UnavailableError(f"{self.address} cannot be listed: {_reason(error)}") from None
        start = len(root.rstrip("/")) + 1
        return sorted(
            (info.path[start:], info.size, info.mtime_ns or 0)
            for info in found
            if info.is_file and not is_no_image(info.base_name) and not info.base_name.startswith(".")
        )

    @property
    def count(self) -> int:
        return len(self._objects)

    def digest(self, start: int, stop: int) -> str:
        lines = [f"{name}\t{size}\t{when}" for name, size, when in self._objects[start:stop]]
        return _sha256(self.address.rstrip("/"), start, lines)

    def images(self, start: int, stop: int) -> Iterator[Image]:
        system, root = self._place
        for number, (name, size, _) in enumerate(self._objects[start:stop], start):
            data: bytes | str
            if size > MAX_FILE_BYTES:
                data = f"larger than {MAX_FILE_BYTES:,} bytes"
            else:
                try:
                    with system.open_input_stream(f"{root.rstrip('/')}/{name}") as stream:
                        data = stream.read()
                except FileNotFoundError:
                    data = GONE
                except OSError as error:  # the store, not the image: the shard is tried again
                    raise UnavailableError(f"{self.address}: {name} cannot be read: {_reason(error)}") from None
            yield Image(number, name, data)


def _read(path: Path) -> bytes | str:
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        refuse_away(path.parent, [path.name])
        return GONE
    except OSError as error:
        reason = error.strerror or str(error)
        if not says_no_image(error, path):
            raise UnavailableError(f"{path} cannot be read: {reason}; run it again when it can be") from None
        return reason


def _reason(error: OSError) -> str:
    return " ".join(str(error).split())[:300]


def _sha256(place: str, start: int, lines: list[str]) -> str:
    return hashlib.sha256("\n".join([place, str(start), *lines]).encode("utf-8", "surrogateescape")).hexdigest()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingError("pyarrow is not installed: pip install 'dmsh-toolkit[parquet]'") from error
    return pyarrow, parquet
