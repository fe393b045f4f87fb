"""The bytes of one part of a gallery: a safetensors file, written by streaming and read by mapping.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header, the tensors back
to back. Tensors:

- ``codes`` uint8;
- ``ids`` int64, or int32 if the layout is clustered and all fit; none if the ids are a range, which the metadata gives;
- ``starts`` int32 in the clustered layout;
- ``key_offsets`` int64 and ``keys`` uint8 in a gallery with keys;
- ``removed`` int64, rows of the parts below.

See :class:`dmsh_serving.gallery.part.Part`. Written by hand rather than by the safetensors package so that the widest
numbers come first (all are aligned), equal content gives equal bytes, and a reader checks every size before it
allocates or maps anything.

The checksum is a SHA-256 over the metadata and, of each tensor, the SHA-256s of its blocks of 4 MiB: blocks are hashed
side by side, which is what lets a gallery of ten million codes be checked whole in a tenth of a second.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import bytes_per_code
from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.gallery.part import Part, PartName

__all__ = ["Tensors", "digest_of", "is_version", "read_base", "read_next_id", "read_part", "version_of", "write_part"]

FORMAT: Final = "dmsh-gallery"
FORMAT_VERSION: Final = "3"
MAX_HEADER_BYTES: Final = 1 << 16
_BLOCK: Final = 1 << 22
_WORTH_THREADS: Final = 1 << 23  # bytes; hashing less than this on one thread is quicker

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
_NAME_OF_DTYPE: Final = {dtype: name for name, dtype in _DTYPES.items()}
_KINDS: Final = {  # of each tensor, the dtypes it may have, and its axes
    "ids": (("I64", "I32"), 1),
    "starts": (("I32",), 1),
    "key_offsets": (("I64",), 1),
    "removed": (("I64",), 1),
    "codes": (("U8",), 2),
    "keys": (("U8",), 1),
}
_NUMBERS: Final = ("bits", "count", "first_id", "next_id")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_VERSION: Final = re.compile(r"[0-9]{8}-[0-9a-f]{8}")


def is_version(text: str) -> bool:
    """Say whether ``text`` can name a version: a counter, and the first 8 hex digits of a checksum."""
    return _VERSION.fullmatch(text) is not None


def version_of(path: Path) -> str:
    """Return the version in the name of a part's file."""
    return path.name.removeprefix("gallery-").removesuffix(".safetensors")


def digest_of(part: Part) -> str:
    """Return the SHA-256 (hex) over the metadata and every tensor's name, dtype, shape and blocks."""
    tensors = _tensors(part)
    digest = hashlib.sha256(json.dumps(_metadata_of(part), sort_keys=True).encode())
    blocks = [block for array in tensors.values() for block in _blocks(array)]
    if sum(len(block) for block in blocks) < _WORTH_THREADS:
        hashes = iter([_sha256(block) for block in blocks])
    else:
        with ThreadPoolExecutor(available_cpus()) as pool:  # hashlib works without the GIL
            hashes = iter(list(pool.map(_sha256, blocks)))
    for name, array in tensors.items():
        digest.update(f"\n{name} {_NAME_OF_DTYPE[array.dtype]} {list(array.shape)}\n".encode())
        for _ in range(-(-array.nbytes // _BLOCK)):
            digest.update(next(hashes))
    return digest.hexdigest()


def write_part(file: BinaryIO, part: Part, digest: str) -> None:
    """Write ``part`` to an open file; ``digest`` comes from :func:`digest_of`."""
    header: dict[str, Any] = {"__metadata__": {**_metadata_of(part), "sha256": digest}}
    tensors = _tensors(part)
    offset = 0
    for name, array in tensors.items():
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
    for array in tensors.values():
        for block in _blocks(array):
            file.write(block)


def read_part(path: Path, name: PartName | None = None) -> tuple[Part, str]:
    """Map the part at ``path`` read-only and check it whole: sizes, checksum, order, fill bits, text.

    Args:
        path: ``gallery-<version>.safetensors``; the version ends with the first 8 digits of the checksum.
        name: refuse any other content than this, which the part above says is below it.

    Returns:
        The part and its SHA-256.

    Raises:
        InputError: anything is not as :func:`write_part` writes it; the message says what.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data_start = _read_header(path, file, size)
        metadata = _metadata(path, header)
        specs = _tensor_specs(path, header, size - data_start)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors: Tensors = {
        name: np.frombuffer(mapped, dtype, count=int(np.prod(shape, dtype=object)), offset=data_start + start).reshape(
            shape
        )
        for name, (dtype, shape, start) in specs.items()
    }
    part = _part(path, metadata, tensors)
    digest = metadata["sha256"]
    if digest_of(part) != digest:
        raise _broken(path, "its checksum does not match its content")
    if path.stem.rpartition("-")[2] != digest[:8]:
        raise _broken(path, f"its name does not fit its content, whose checksum begins with {digest[:8]}")
    if name is not None and digest != name.sha256:
        raise _broken(path, f"the part above it was written over other content, SHA-256 {name.sha256}")
    part.check(str(path))
    return part, digest


def read_base(path: Path) -> PartName | None:
    """Return which part the one at ``path`` says is below it, from its header alone."""
    return _base(path, _read_metadata(path))


def read_next_id(path: Path) -> int:
    """Return the next id that the part at ``path`` gives, from its header alone."""
    return int(_read_metadata(path)["next_id"])


def _tensors(part: Part) -> Tensors:
    """Return the tensors by name, in file order: the widest numbers first, so that all are aligned."""
    tensors: dict[str, Array | None] = {
        "ids": part.ids,
        "starts": part.starts,
        "key_offsets": None if part.keys is None else part.keys.offsets,
        "removed": part.removed if part.removed.size else None,
        "codes": part.codes,
        "keys": None if part.keys is None else part.keys.text,
    }
    found = [(name, array) for name, array in tensors.items() if array is not None]
    return dict(sorted(found, key=lambda each: -each[1].itemsize))


def _metadata_of(part: Part) -> dict[str, str]:
    """Return the metadata but for the checksum, which is over it too."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "bits": str(part.bits),
        "fingerprint": part.fingerprint,
        "count": str(part.count),
        "first_id": str(part.first_id),
        "next_id": str(part.next_id),
        "layout_reason": part.layout_reason,
        "distinct": "" if part.distinct is None else str(part.distinct),
        "base": "" if part.base is None else f"{part.base.version} {part.base.sha256}",
    }


def _part(path: Path, metadata: dict[str, str], tensors: Tensors) -> Part:
    keys = Keys(tensors["key_offsets"], tensors["keys"]) if "keys" in tensors else None
    part = Part(
        int(metadata["bits"]),
        metadata["fingerprint"],
        tensors["codes"],
        tensors.get("ids"),
        int(metadata["first_id"]),
        tensors.get("starts"),
        keys,
        tensors.get("removed", np.empty(0, np.int64)),
        _base(path, metadata),
        int(metadata["next_id"]),
        metadata["layout_reason"],
        int(metadata["distinct"]) if metadata["distinct"] else None,
    )
    if metadata["count"] != str(part.count):
        raise _broken(path, f"its metadata counts {metadata['count']} codes, its tensors {part.count}")
    return part


def _base(path: Path, metadata: dict[str, str]) -> PartName | None:
    text = metadata["base"]
    if not text:
        return None
    version, _, sha256 = text.partition(" ")
    name = PartName(version, sha256)
    if not is_version(version) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _broken(path, f"its metadata gives {text[:100]!r} as the part below")
    if version >= version_of(path):
        raise _broken(path, f"it names {version} as the part below, which is not older than it")
    return name


def _read_metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        header, _ = _read_header(path, file, os.fstat(file.fileno()).st_size)
    return _metadata(path, header)


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
        found = str(metadata.get("format_version"))[:20]
        raise _broken(path, f"it has format version {found}, this tool reads {FORMAT_VERSION}: build the gallery anew")
    expected = (*_NUMBERS, "fingerprint", "sha256", "layout_reason", "distinct", "base")
    missing = [key for key in expected if not isinstance(metadata.get(key), str)]
    if missing:
        raise _broken(path, f"its metadata lacks {', '.join(missing)}")
    for key in _NUMBERS:
        if not _NUMBER.fullmatch(metadata[key]):
            raise _broken(path, f"its metadata gives {metadata[key][:100]!r} as {key}")
    if metadata["distinct"] and not _NUMBER.fullmatch(metadata["distinct"]):
        raise _broken(path, f"its metadata gives {metadata['distinct'][:100]!r} as distinct")
    bytes_per_code(int(metadata["bits"]))
    return metadata


def _tensor_specs(
    path: Path, header: dict[str, Any], data_bytes: int
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Return dtype, shape and start of every tensor, once their sizes (in unbounded integers) fill the file."""
    names = set(header)
    if "codes" not in names or names - set(_KINDS) or ("keys" in names) != ("key_offsets" in names):
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
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise _broken(path, f"the header entry of {name} is malformed")
        bytes_needed = dtype.itemsize
        for length in shape:
            bytes_needed *= length
        dtypes, axes = _KINDS[name]
        if entry["dtype"] not in dtypes or len(shape) != axes or end - start != bytes_needed:
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


def _blocks(array: Array) -> Iterator[memoryview]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), _BLOCK):
        yield flat[start : start + _BLOCK]


def _sha256(block: memoryview) -> bytes:
    return hashlib.sha256(block).digest()


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be used as a gallery: {reason}")
