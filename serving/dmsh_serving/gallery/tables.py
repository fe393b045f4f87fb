"""Codes with ids and keys as other tools keep them: .npy files, or Parquet with the columns id, key and code."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.files import state_of, whole_file
from dmsh_serving.gallery.keys import Keys, joined_keys
from dmsh_serving.images.read import load_npy

if TYPE_CHECKING:
    from dmsh_serving.gallery.snapshot import Snapshot

__all__ = [
    "PARQUET_SUFFIX",
    "CodeTable",
    "TableSpace",
    "iter_parquet",
    "parquet_space",
    "read_ids",
    "read_table",
    "shard_paths",
    "write_npy",
    "write_parquet",
    "write_table",
]

PARQUET_SUFFIX: Final = ".parquet"
_ID, _KEY, _CODE = "id", "key", "code"
_SHARD: Final = re.compile(r"codes-\d{5}-of-\d{5}\.parquet")
_BITS, _FINGERPRINT = "dmsh.bits", "dmsh.fingerprint"


@dataclass(frozen=True)
class CodeTable:
    """What a file of codes held.

    Attributes:
        codes: (N, B) uint8.
        ids: (N,) integers, or None if the file has none.
        keys: N strings, or None if the file has none.
        bits: bits per code, if the file says so.
        fingerprint: names the model that made the codes, if the file says so.
    """

    codes: Codes
    ids: npt.NDArray[np.integer] | None = None
    keys: Keys | None = None
    bits: int | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class TableSpace:
    """What the footer of a Parquet file of codes says.

    Attributes:
        count: number of rows.
        has_keys: whether there is a column ``key``.
        bits: bits per code, if the file says so.
        fingerprint: names the model that made the codes, if the file says so.
        kinds: of each further column of strings or numbers, ``String``, ``Int64`` or ``Float64``.
    """

    count: int
    has_keys: bool
    bits: int | None
    fingerprint: str | None
    kinds: dict[str, str]


def parquet_space(path: Path) -> TableSpace:
    """Read what a Parquet file of codes holds, not the codes.

    Raises:
        InputError: missing, damaged, or without a column ``code``.
        MissingError: pyarrow is not installed.
    """
    pa, _ = _pyarrow()
    file = _opened(path)
    schema, said = file.schema_arrow, _said(file)
    kinds = {}
    for field in schema:
        types = pa.types
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if field.name in (_ID, _KEY, _CODE):
            continue
        if types.is_string(kind) or types.is_large_string(kind):
            kinds[field.name] = "String"
        elif types.is_integer(kind) and kind != pa.uint64():
            kinds[field.name] = "Int64"
        elif types.is_floating(kind):
            kinds[field.name] = "Float64"
    return TableSpace(file.metadata.num_rows, _KEY in schema.names, _bits(said), said.get(_FINGERPRINT), kinds)


def iter_parquet(
    path: Path, columns: tuple[str, ...], rows_at_once: int
) -> Iterator[tuple[CodeTable, dict[str, "Any"]]]:
    """Yield the rows of a Parquet file of codes in bounded memory, with further ``columns`` as pyarrow arrays.

    Raises:
        InputError: damaged, or not such a file; see :func:`read_table`.
    """
    pa, _ = _pyarrow()
    file = _opened(path)
    names = [name for name in (_ID, _KEY, _CODE) if name in file.schema_arrow.names]
    said = _said(file)
    held: list[Any] = []

    def joined(count: int) -> tuple[CodeTable, dict[str, Any]]:
        table = pa.Table.from_batches(held)
        held[:] = table.slice(count).to_batches()
        return _code_table(pa, path, table.slice(0, count), names, said), {
            name: _one_array(pa, table.slice(0, count)[name]) for name in columns
        }

    try:
        for batch in file.iter_batches(rows_at_once, columns=[*names, *columns]):
            held.append(batch)
            if sum(map(len, held)) >= rows_at_once:
                yield joined(rows_at_once)
        if sum(map(len, held)):
            yield joined(sum(map(len, held)))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def read_table(path: Path) -> CodeTable:
    """Read codes from .npy, uint8 [N, B], from Parquet, or from the folder that dmsh-export encode wrote.

    Parquet: column ``code``, binary values or lists of uint8, all of one length; optionally ``id``, integers, and
    ``key``, strings; others are left alone. Bits and fingerprint are read if :func:`write_parquet` wrote them.

    Raises:
        InputError: missing, damaged, or not such a file.
        MissingError: pyarrow is not installed.
    """
    if path.is_dir():
        before = _states(path)
        table = _joined(path, [_read_parquet(part) for part in before])
        if _states(path) != before:
            raise InputError(f"{path} was changed while it was read: read it again once encode has ended")
        return table
    if path.suffix == PARQUET_SUFFIX:
        return _read_parquet(path)
    array = load_npy(path, "codes, uint8 [N, ceil(bits/8)]")
    if array.dtype != np.uint8 or array.ndim != 2:
        raise InputError(f"{path} is {array.dtype} {list(array.shape)}, expected codes, uint8 [N, ceil(bits/8)]")
    return CodeTable(array.view(np.uint8))


def _states(folder: Path) -> dict[Path, str]:
    return {path: state_of(path) for path in shard_paths(folder)}


def read_ids(path: Path) -> npt.NDArray[np.integer]:
    """Read ids, integers [N], from .npy."""
    array = load_npy(path, "ids, integers [N]")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise InputError(f"{path} is {array.dtype} {list(array.shape)}, expected ids, integers [N]")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{path}: id {array.max()} is too large: ids are int64")
    return array.astype(np.int64)


def write_parquet(path: Path, snapshot: "Snapshot") -> None:
    """Write all of a gallery as Parquet, in ascending id order, with its bits and fingerprint in the schema."""
    contents = snapshot.contents()
    table = CodeTable(contents.codes, contents.ids, contents.keys, snapshot.bits, snapshot.fingerprint)
    write_table(path, table)


def write_table(path: Path, table: CodeTable) -> None:
    """Write codes with ids, and keys if there are any, as Parquet; equal content gives equal bytes.

    The bits and the fingerprint of ``table`` go into the schema.
    """
    pa, parquet = _pyarrow()
    count, width = table.codes.shape
    columns = {_ID: pa.array(table.ids)}
    if table.keys is not None:
        buffers = [None, *map(pa.py_buffer, (table.keys.offsets, table.keys.text))]
        columns[_KEY] = pa.Array.from_buffers(pa.large_string(), count, buffers)
    values = pa.py_buffer(np.ascontiguousarray(table.codes))
    columns[_CODE] = pa.Array.from_buffers(pa.binary(width), count, [None, values])
    said = {_BITS: str(table.bits), _FINGERPRINT: table.fingerprint}
    with whole_file(path) as file:
        parquet.write_table(pa.table(columns).replace_schema_metadata(said), file)


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy, whole or not at all."""
    with whole_file(path) as file:
        np.save(file, array, allow_pickle=False)


def _read_parquet(path: Path) -> CodeTable:
    pa, _ = _pyarrow()
    file = _opened(path)
    names = [name for name in (_ID, _KEY, _CODE) if name in file.schema_arrow.names]
    try:
        table = file.read(names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    return _code_table(pa, path, table, names, _said(file))


def shard_paths(folder: Path) -> list[Path]:
    """Return the files of codes in a folder that dmsh-export encode wrote, in their order.

    Raises:
        InputError: none, or not all of them.
    """
    paths = sorted(path for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if not paths:
        raise InputError(f"{folder} holds no codes-*.parquet: make them with dmsh-export encode")
    of = int(paths[0].stem.rpartition("-")[2])
    if [path.name for path in paths] != [f"codes-{number:05d}-of-{of:05d}.parquet" for number in range(of)]:
        raise InputError(f"{folder} has {len(paths)} of {of} files of codes: run dmsh-export encode again to finish it")
    return paths


def _joined(folder: Path, tables: list[CodeTable]) -> CodeTable:
    first = tables[0]
    if any((each.bits, each.fingerprint) != (first.bits, first.fingerprint) for each in tables):
        raise InputError(f"{folder} holds codes of several models: encode the images again into another folder")
    ids = [each.ids for each in tables if each.ids is not None]
    keys = [each.keys for each in tables if each.keys is not None]
    if not len(ids) == len(keys) == len(tables):
        raise InputError(f"{folder}: a file of codes has no ids or no keys: encode the images again")
    codes = np.concatenate([each.codes for each in tables])
    return CodeTable(codes, np.concatenate(ids), joined_keys(keys), first.bits, first.fingerprint)


def _opened(path: Path) -> Any:
    pa, parquet = _pyarrow()
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        file = parquet.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    names = file.schema_arrow.names
    if _CODE not in names:
        raise InputError(f"{path} has no column {_CODE!r}: it has {', '.join(names)}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{path} has more than one column {twice[0]!r}: give each its own name")
    return file


def _said(file: Any) -> dict[str, str]:
    """Return what the schema says about the codes."""
    said = file.schema_arrow.metadata or {}
    return {key.decode(): value.decode(errors="replace") for key, value in said.items() if key.startswith(b"dmsh.")}


def _bits(said: dict[str, str]) -> int | None:
    bits = said.get(_BITS, "")
    return int(bits) if bits.isascii() and bits.isdigit() and len(bits) <= 4 else None


def _code_table(pa: Any, path: Path, table: Any, names: list[str], said: dict[str, str]) -> CodeTable:
    for name in names:
        if table[name].null_count:
            raise InputError(f"{path}: {table[name].null_count} values of column {name!r} are missing (null)")
    columns = {name: _one_array(pa, table[name]) for name in names}
    return CodeTable(
        _codes(pa, path, columns[_CODE]),
        _ids(pa, path, columns[_ID]) if _ID in columns else None,
        _keys(pa, path, columns[_KEY]) if _KEY in columns else None,
        _bits(said),
        said.get(_FINGERPRINT),
    )


def _one_array(pa: Any, column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.num_chunks > 1:  # whose offsets may pass 2^31 together
        column = column.cast(_wide(pa, column.type))
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _wide(pa: Any, kind: Any) -> Any:
    """Return the type of the same values with offsets of 64 bits."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    return pa.large_list(kind.value_field) if pa.types.is_list(kind) else kind


def _codes(pa: Any, path: Path, array: Any) -> Codes:
    types, kind = pa.types, array.type
    if types.is_fixed_size_binary(kind):
        flat = np.frombuffer(array.buffers()[1], np.uint8) if len(array) else np.empty(0, np.uint8)
        first = array.offset * kind.byte_width
        return flat[first : first + len(array) * kind.byte_width].reshape(len(array), kind.byte_width)
    if types.is_binary(kind) or types.is_large_binary(kind):
        offsets, flat = _offsets_and_bytes(pa, array)
    elif types.is_fixed_size_list(kind) and kind.value_type == pa.uint8():
        found: Codes = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), kind.list_size)
        return found
    elif (types.is_list(kind) or types.is_large_list(kind)) and kind.value_type == pa.uint8():
        offsets = array.offsets.to_numpy().astype(np.int64)
        flat, offsets = array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]
    else:
        raise InputError(f"{path}: column {_CODE!r} is {kind}, expected binary values or lists of uint8")
    lengths = np.diff(offsets)
    if not len(lengths):
        return np.empty((0, 0), np.uint8)
    if (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0])
        raise InputError(f"{path}: the code of row {row} has {lengths[row]} bytes, that of row 0 has {lengths[0]}")
    return flat.reshape(len(lengths), int(lengths[0]))


def _ids(pa: Any, path: Path, array: Any) -> npt.NDArray[np.integer]:
    if not pa.types.is_integer(array.type):
        raise InputError(f"{path}: column {_ID!r} is {array.type}, expected integers")
    found: npt.NDArray[np.integer] = array.to_numpy(zero_copy_only=False)
    return found


def _keys(pa: Any, path: Path, array: Any) -> Keys:
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise InputError(f"{path}: column {_KEY!r} is {array.type}, expected strings")
    offsets, text = _offsets_and_bytes(pa, array)
    keys = Keys(offsets, text)
    keys.check(len(array), str(path))  # Parquet's readers do not look whether strings are text
    return keys


def _offsets_and_bytes(pa: Any, array: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the offsets (N + 1,), from 0 on, and the bytes of an array of strings or binary values."""
    if not len(array):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    wide = pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type)
    _, place, data = array.buffers()
    offsets = np.frombuffer(place, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    flat = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return offsets.astype(np.int64) - int(offsets[0]), flat[offsets[0] : offsets[-1]]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingError("pyarrow is not installed: pip install 'dmsh-toolkit[parquet]'") from error
    return pyarrow, parquet
