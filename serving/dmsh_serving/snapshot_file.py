"""The bytes of one gallery snapshot: a safetensors file, written by streaming and read by mapping.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header, the
tensors back to back. Tensors: ``codes`` uint8 [N, B], ``ids`` int64 [N] strictly ascending, and optionally
``key_offsets`` int64 [N + 1] with ``keys`` uint8, the keys' UTF-8 end to end. Written by hand rather than by
the safetensors package so that int64 tensors come first (aligned), equal content gives equal bytes, and a
reader checks every size before it allocates or maps anything.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import bytes_per_code, check_codes
from dmsh_serving.errors import InputError

FORMAT: Final = "dmsh-gallery"
FORMAT_VERSION: Final = "1"
MAX_HEADER_BYTES: Final = 1 << 16
_HASH_CHUNK: Final = 1 << 24

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_NAME_OF_DTYPE: Final = {dtype: name for name, dtype in _DTYPES.items()}
_TENSOR_SETS: Final = ({"ids", "codes"}, {"ids", "key_offsets", "codes", "keys"})


@dataclass(frozen=True)
class SnapshotContent:
    """What one snapshot holds.

    Attributes:
        bits: bits a code.
        fingerprint: of the model that made the codes.
        codes: (N, ceil(bits/8)) uint8.
        ids: (N,) int64, strictly ascending, not negative.
        key_offsets: (N + 1,) int64 into ``keys``, or None where the gallery has no keys.
        keys: the UTF-8 of all keys, uint8, or None.
    """

    bits: int
    fingerprint: str
    codes: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int64]
    key_offsets: npt.NDArray[np.int64] | None = None
    keys: npt.NDArray[np.uint8] | None = None

    def tensors(self) -> Tensors:
        """Return the tensors by name, in file order: int64 before uint8, so that all are aligned."""
        found: dict[str, Array | None] = {
            "ids": self.ids,
            "key_offsets": self.key_offsets,
            "codes": self.codes,
            "keys": self.keys,
        }
        return {name: array for name, array in found.items() if array is not None}


def digest_of(content: SnapshotContent) -> str:
    """Return the SHA-256 over bits, fingerprint and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(f"{FORMAT}/{FORMAT_VERSION} {content.bits} {content.fingerprint}\n".encode())
    for name, array in content.tensors().items():
        digest.update(f"{name} {_NAME_OF_DTYPE[array.dtype]} {list(array.shape)}\n".encode())
        for chunk in _chunks(array):
            digest.update(chunk)
    return digest.hexdigest()


def write_snapshot(file: BinaryIO, content: SnapshotContent, digest: str) -> None:
    """Write ``content`` to an open file and fsync it; ``digest`` comes from :func:`digest_of`."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "bits": str(content.bits),
            "fingerprint": content.fingerprint,
            "count": str(len(content.ids)),
            "sha256": digest,
        }
    }
    offset = 0
    for name, array in content.tensors().items():
        header[name] = {
            "dtype": _NAME_OF_DTYPE[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for array in content.tensors().values():
        for chunk in _chunks(array):
            file.write(chunk)
    file.flush()
    os.fsync(file.fileno())


def read_snapshot(path: Path) -> SnapshotContent:
    """Map the snapshot at ``path`` read-only and check it whole: sizes, checksum, order, fill bits.

    Raises:
        InputError: anything is not as :func:`write_snapshot` writes it; the message says what.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data_start = _read_header(path, file, size)
        metadata = _metadata(path, header)
        specs = _tensor_specs(path, header, size - data_start)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {
        name: np.frombuffer(mapped, dtype, count=int(np.prod(shape, dtype=object)), offset=data_start + start).reshape(
            shape
        )
        for name, (dtype, shape, start) in specs.items()
    }
    content = SnapshotContent(int(metadata["bits"]), metadata["fingerprint"], **tensors)
    if metadata["count"] != str(len(content.ids)):
        raise _broken(path, f"its metadata counts {metadata['count']} codes, its tensors {len(content.ids)}")
    if digest_of(content) != metadata["sha256"]:
        raise _broken(path, "its checksum does not match its content")
    check_content(content, str(path))
    return content


def check_content(content: SnapshotContent, where: str) -> None:
    """Raise :class:`InputError` unless codes, ids and keys agree with each other and with ``bits``."""
    check_codes(content.codes, content.bits)
    ids, count = content.ids, len(content.codes)
    if ids.shape != (count,):
        raise InputError(f"{where}: {count} codes but ids of shape {list(ids.shape)}")
    if count and ids[0] < 0:
        raise InputError(f"{where}: id {ids[0]} is negative; ids are 0 or more")
    if not (ids[1:] > ids[:-1]).all():
        raise InputError(f"{where}: ids are not strictly ascending")
    offsets, keys = content.key_offsets, content.keys
    if offsets is None or keys is None:
        return
    ascending = offsets.shape == (count + 1,) and bool((offsets[1:] >= offsets[:-1]).all())
    if not ascending or offsets[0] != 0 or offsets[-1] != keys.size:
        raise InputError(f"{where}: the key offsets do not fit {count} codes and {keys.size} bytes of keys")


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise _broken(path, f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise _broken(path, f"its header claims {length} bytes of a {size}-byte file")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header, 8 + length


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _broken(path, "it is a foreign file, not a gallery")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise _broken(path, f"it has format version {metadata.get('format_version')}, this tool reads {FORMAT_VERSION}")
    expected = ("bits", "fingerprint", "count", "sha256")
    missing = [key for key in expected if not isinstance(metadata.get(key), str)]
    if missing:
        raise _broken(path, f"its metadata lacks {', '.join(missing)}")
    if not (metadata["bits"].isascii() and metadata["bits"].isdigit() and len(metadata["bits"]) <= 4):
        raise _broken(path, f"its metadata gives {metadata['bits']!r} as bits")
    bytes_per_code(int(metadata["bits"]))
    return metadata


def _tensor_specs(
    path: Path, header: dict[str, Any], data_bytes: int
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Return dtype, shape and start of every tensor, once their sizes (in unbounded integers) fill the file."""
    if set(header) not in _TENSOR_SETS:
        raise _broken(path, f"it holds the tensors {', '.join(sorted(header)) or 'none'}")
    specs: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            start, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(path, f"the header entry of {name} is malformed") from error
        numbers = (*shape, start, end)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise _broken(path, f"the header entry of {name} is malformed")
        bytes_needed = dtype.itemsize
        for length in shape:
            bytes_needed *= length
        expected = (np.dtype("<i8"), 1) if name in ("ids", "key_offsets") else (np.dtype("u1"), 1 + (name == "codes"))
        if (dtype, len(shape)) != expected or end - start != bytes_needed:
            raise _broken(path, f"{name} is {entry['dtype']} {list(shape)} in {end - start} bytes")
        specs[name] = (dtype, shape, start)
        spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise _broken(path, "its tensors overlap or leave gaps")
        at = end
    if at != data_bytes:
        raise _broken(path, f"its tensors need {at} bytes, the file has {data_bytes}: it is truncated or damaged")
    return specs


def _chunks(array: Array) -> Iterator[memoryview]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), _HASH_CHUNK):
        yield flat[start : start + _HASH_CHUNK]


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be used as a gallery: {reason}")
