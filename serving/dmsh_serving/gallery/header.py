"""The header of a part, the gallery's manifest: what it says, written, read and checked.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header, the tensors back
to back. The metadata in the header says what the part is, which part is below it, and its checksum. Tensors:

- ``codes`` uint8;
- ``ids`` int64, or int32 if the layout is clustered and all fit; none if the ids are a range, which the metadata gives;
- ``starts`` int32 in the clustered layout;
- ``key_offsets`` int64 and ``keys`` uint8 in a gallery with keys;
- ``removed`` int64, rows of the parts below.

Written by hand rather than by the safetensors package so that the widest numbers come first (all are aligned), equal
content gives equal bytes, and a reader checks every size before it allocates or maps anything.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import bytes_per_code
from dmsh_serving.errors import InputError
from dmsh_serving.files import naming, open_regular
from dmsh_serving.gallery.part import Part, PartName

__all__ = [
    "NAME_OF_DTYPE",
    "Tensors",
    "base_of",
    "broken",
    "encoded_header",
    "is_version",
    "metadata_of",
    "read_base",
    "read_header",
    "read_next_id",
    "version_of",
]

FORMAT: Final = "dmsh-gallery"
FORMAT_VERSION: Final = "3"
MAX_HEADER_BYTES: Final = 1 << 16

Tensors = dict[str, npt.NDArray[Any]]
Specs = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
NAME_OF_DTYPE: Final = {dtype: name for name, dtype in _DTYPES.items()}
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


def encoded_header(metadata: dict[str, str], tensors: Tensors) -> bytes:
    """Return the first bytes of a part's file: the header's length and the header, which ends at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": NAME_OF_DTYPE[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], Specs, int]:
    """Return the metadata, {tensor: (dtype, shape, start)} and where the tensors begin, each checked."""
    size = os.fstat(file.fileno()).st_size
    header, data_start = _read_json(path, file, size)
    return _metadata(path, header), _tensor_specs(path, header, size - data_start), data_start


def read_base(path: Path) -> PartName | None:
    """Return which part the one at ``path`` says is below it, from its header alone."""
    return base_of(path, _read_metadata(path))


def read_next_id(path: Path) -> int:
    """Return the next id that the part at ``path`` gives, from its header alone."""
    return int(_read_metadata(path)["next_id"])


def metadata_of(part: Part) -> dict[str, str]:
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


def base_of(path: Path, metadata: dict[str, str]) -> PartName | None:
    """Return which part ``metadata`` says is below the one at ``path``."""
    text = metadata["base"]
    if not text:
        return None
    version, _, sha256 = text.partition(" ")
    name = PartName(version, sha256)
    if not is_version(version) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise broken(path, f"its metadata gives {text[:100]!r} as the part below")
    if version >= version_of(path):
        raise broken(path, f"it names {version} as the part below, which is not older than it")
    return name


def _read_metadata(path: Path) -> dict[str, str]:
    with naming(path), open_regular(path) as file:
        header, _ = _read_json(path, file, os.fstat(file.fileno()).st_size)
    return _metadata(path, header)


def _read_json(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise broken(path, f"it has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise broken(path, f"its header claims {length} bytes of a {size}-byte file")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise broken(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise broken(path, "its header is not a JSON object")
    return header, 8 + length


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise broken(path, "it is a foreign file, not a gallery")
    if metadata.get("format_version") != FORMAT_VERSION:
        found = str(metadata.get("format_version"))[:20]
        raise broken(path, f"it has format version {found}, this tool reads {FORMAT_VERSION}: build the gallery anew")
    expected = (*_NUMBERS, "fingerprint", "sha256", "layout_reason", "distinct", "base")
    missing = [key for key in expected if not isinstance(metadata.get(key), str)]
    if missing:
        raise broken(path, f"its metadata lacks {', '.join(missing)}")
    for key in _NUMBERS:
        if not _NUMBER.fullmatch(metadata[key]):
            raise broken(path, f"its metadata gives {metadata[key][:100]!r} as {key}")
    if metadata["distinct"] and not _NUMBER.fullmatch(metadata["distinct"]):
        raise broken(path, f"its metadata gives {metadata['distinct'][:100]!r} as distinct")
    bytes_per_code(int(metadata["bits"]))
    return metadata


def _tensor_specs(path: Path, header: dict[str, Any], data_bytes: int) -> Specs:
    """Return dtype, shape and start of every tensor, once their sizes (in unbounded integers) fill the file."""
    names = set(header)
    if "codes" not in names or names - set(_KINDS) or ("keys" in names) != ("key_offsets" in names):
        raise broken(path, f"it holds the tensors {', '.join(sorted(header)) or 'none'}")
    specs: Specs = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            start, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise broken(path, f"the header entry of {name} is malformed") from error
        numbers = (*shape, start, end)
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise broken(path, f"the header entry of {name} is malformed")
        bytes_needed = dtype.itemsize
        for length in shape:
            bytes_needed *= length
        dtypes, axes = _KINDS[name]
        if entry["dtype"] not in dtypes or len(shape) != axes or end - start != bytes_needed:
            raise broken(path, f"{name} is {entry['dtype']} {list(shape)} in {end - start} bytes")
        specs[name] = (dtype, shape, start)
        spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise broken(path, "its tensors overlap or leave gaps")
        at = end
    if at != data_bytes:
        raise broken(path, f"its tensors need {at} bytes, the file has {data_bytes}: it is truncated or damaged")
    return specs


def broken(path: Path, reason: str) -> InputError:
    """Return the error of a part that cannot be used."""
    return InputError(f"{path} cannot be used as a gallery: {reason}")
