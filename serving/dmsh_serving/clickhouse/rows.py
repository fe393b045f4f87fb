"""Rows to push: what a gallery folder or a Parquet file holds, as blocks of one million rows, with their checksums."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.clickhouse.words import checksum, checksum_sql, crc_of_strings, word_names, words_of_codes
from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.files import sha256_of_file
from dmsh_serving.gallery.folder import next_id_of
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.gallery.part import Ids, Part
from dmsh_serving.gallery.tables import iter_parquet, parquet_space, shard_paths

if TYPE_CHECKING:
    from dmsh_serving.gallery.snapshot import Snapshot

__all__ = ["Block", "Incoming", "Source", "numbers_sql", "source_of_gallery", "source_of_parquet"]

BLOCK_ROWS = 1 << 20


_COLUMN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of a segment.

    Attributes:
        ids: (N,) int64.
        codes: (N, B) uint8.
        keys: N strings, or None.
        columns: N values of each metadata column, by name.
    """

    ids: Ids
    codes: Codes
    keys: Keys | None
    columns: Mapping[str, Any]

    def checksum(self, kinds: Mapping[str, str]) -> int:
        """Return the checksum of the rows; :func:`numbers_sql` says of what."""
        texts = np.zeros(len(self.ids), np.uint64) if self.keys is None else crc_of_strings(_texts(self.keys))
        numbers: list[npt.NDArray[Any]] = [self.ids, *words_of_codes(self.codes).T, texts]
        for name, kind in kinds.items():
            values = self.columns[name]
            if kind == "String":
                numbers.append(crc_of_strings(value.encode() for value in values.to_pylist()))
            else:
                numbers.append(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).view(np.uint64))
        return checksum(numbers)

    def table(self, segment: int, block: int) -> Any:
        """Return the rows as a ``pyarrow.Table`` with the columns of the table of codes."""
        import pyarrow as pa

        count = len(self.ids)
        table = {
            "segment": pa.array(np.full(count, segment, np.uint64)),
            "block": pa.array(np.full(count, block, np.uint32)),
            "id": pa.array(self.ids),
        }
        words = words_of_codes(self.codes)
        for index in range(words.shape[1]):
            table[f"w{index}"] = pa.array(np.ascontiguousarray(words[:, index]))
        if self.keys is not None:
            buffers = [None, *map(pa.py_buffer, (self.keys.offsets, self.keys.text))]
            table["key"] = pa.Array.from_buffers(pa.large_string(), count, buffers)
        for name, values in self.columns.items():
            table[f"m_{name}"] = values
        return pa.table(table)


@dataclass(frozen=True, eq=False)
class Incoming:
    """A segment that is to be there: its name, its rows, and ids that are taken away from it."""

    name: int
    count: int
    blocks: Iterator[Block]
    removed: Ids = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class Source:
    """What is pushed.

    Attributes:
        name: where it comes from.
        bits, fingerprint: the code space.
        has_keys: whether codes have keys.
        kinds: type in ClickHouse of each metadata column, by name.
        segments: the rows.
        next_id: larger than every id that was given out; 0 if that is not known.
        unique: whether the ids are known to differ.
    """

    name: str
    bits: int
    fingerprint: str
    has_keys: bool
    kinds: Mapping[str, str]
    segments: tuple[Incoming, ...]
    next_id: int = 0
    unique: bool = False


def source_of_gallery(folder: Path, snapshot: "Snapshot") -> Source:
    """Return a version of a gallery: each part is a segment, so that an append sends as much as it adds."""
    segments = []
    for part, name, live in zip(snapshot.parts, snapshot.names, snapshot.live, strict=True):
        if not part.count:
            continue
        gone = np.empty(0, np.int64) if live is None else part.ids_of(np.flatnonzero(~live))
        segments.append(Incoming(int(name.sha256[:16], 16), part.count, _blocks_of_part(part), gone))
    space = (snapshot.bits, snapshot.fingerprint, snapshot.has_keys)
    return Source(f"{folder.name} {snapshot.version}", *space, {}, tuple(segments), next_id_of(folder), unique=True)


def source_of_parquet(path: Path, columns: tuple[str, ...], bits: int | None, fingerprint: str | None) -> Source:
    """Return a Parquet file with ``id``, ``code`` and optionally ``key``, or a folder of such files, as one segment.

    Args:
        path: the file, see :func:`dmsh_serving.gallery.tables.read_table`, or what dmsh-export encode wrote.
        columns: its metadata columns to push: strings, whole numbers or floating-point numbers.
        bits, fingerprint: the code space, if the file does not say it.

    Raises:
        InputError: not such a file, no such columns, or a code space that is unknown or another.
    """
    paths = shard_paths(path) if path.is_dir() else [path]
    stamps = [_stamp(each) for each in paths]
    spaces = [parquet_space(each) for each in paths]
    space = spaces[0]
    for name, said, asked in (("bits", space.bits, bits), ("fingerprint", space.fingerprint, fingerprint)):
        if said is not None and asked is not None and said != asked:
            raise InputError(f"{path} says that it has {name} {said}, --{name} says {asked}")
        if any(getattr(each, name) != said for each in spaces):
            raise InputError(f"{path} holds codes of several models: encode the images again into another folder")
    bits, fingerprint = bits or space.bits, fingerprint or space.fingerprint
    if bits is None or fingerprint is None:
        raise InputError(f"{path} does not say its bits and fingerprint: give --bits and --fingerprint")
    kinds = {}
    for name in columns:
        if name not in space.kinds:
            has = ", ".join(space.kinds) or "none"
            raise InputError(f"{path} has no column {name!r} of strings or numbers: it has {has}")
        if not _COLUMN_NAME.fullmatch(name):  # it becomes a part of SQL
            raise InputError(f"{path}: column {name!r} cannot be pushed: a name has at most 64 letters, digits and _")
        kinds[name] = space.kinds[name]
    content = " ".join([*map(sha256_of_file, paths), *columns])
    digest = hashlib.sha256(content.encode()).hexdigest()
    blocks = (
        block
        for each, stamp in zip(paths, stamps, strict=True)
        for block in _unchanged(each, stamp, _blocks_of_parquet(each, kinds, bits))
    )
    count = sum(each.count for each in spaces)
    segments = (Incoming(int(digest[:16], 16), count, blocks),) if count else ()
    return Source(path.name, bits, fingerprint, space.has_keys, kinds, segments)


def numbers_sql(bits: int, kinds: Mapping[str, str]) -> str:
    """Return the SQL of the checksum of rows: over id, code, key and metadata."""
    numbers = ["toUInt64(id)", *word_names(bits), "toUInt64(CRC32(key))"]
    numbers += [
        f"toUInt64(CRC32(m_{name}))" if kind == "String" else f"reinterpretAsUInt64(m_{name})"
        for name, kind in kinds.items()
    ]
    return checksum_sql(numbers)


def _blocks_of_part(part: Part) -> Iterator[Block]:
    for start in range(0, part.count, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, part.count))
        keys = None if part.keys is None else part.keys.take(rows)
        yield Block(part.ids_of(rows), part.codes_of(rows), keys, {})


def _blocks_of_parquet(path: Path, kinds: Mapping[str, str], bits: int) -> Iterator[Block]:
    import pyarrow as pa

    types = {"String": pa.large_string(), "Int64": pa.int64(), "Float64": pa.float64()}
    for table, columns in iter_parquet(path, tuple(kinds), BLOCK_ROWS):
        check_codes(table.codes, bits)
        if table.ids is None:
            raise InputError(f"{path} has no column id: ClickHouse gives no numbers to rows, so give them")
        if table.ids.dtype == np.uint64 and table.ids.size and int(table.ids.max()) >= 2**63:
            raise InputError(f"{path}: id {table.ids.max()} is too large: ids are int64")
        if table.ids.size and table.ids.min() <= PAD_ID:
            raise InputError(f"{path}: id {table.ids.min()} is negative; ids are 0 or more")
        for name, column in columns.items():
            if column.null_count:
                raise InputError(
                    f"{path}: {column.null_count} values of column {name!r} are missing (null): fill them in"
                )
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                raise InputError(f"{path}: column {name!r} is damaged: {error}") from None
        values = {name: column.cast(types[kinds[name]]) for name, column in columns.items()}
        yield Block(table.ids.astype(np.int64), table.codes, table.keys, values)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unchanged(path: Path, stamp: tuple[int, int, int] | None, blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks of a file while it is the one whose hash names the segment."""
    for block in blocks:
        if _stamp(path) != stamp:
            raise InputError(f"{path} was changed while it was read: push it again once it is written whole")
        yield block


def _texts(keys: Keys) -> Iterator[bytes]:
    text = keys.text.tobytes()
    offsets = keys.offsets.tolist()
    return (text[start:stop] for start, stop in pairwise(offsets))
