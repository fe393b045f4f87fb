"""The bytes of one part of a gallery: a safetensors file, written by streaming and read by mapping.

:mod:`dmsh_serving.gallery.header` has its layout, :class:`dmsh_serving.gallery.part.Part` its meaning.

The checksum is a SHA-256 over the metadata and, of each tensor, the SHA-256s of its blocks of 4 MiB: blocks are hashed
side by side, which is what lets a gallery of ten million codes be checked whole in a tenth of a second.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.cpu import available_cpus
from dmsh_serving.files import open_regular
from dmsh_serving.gallery.header import (
    NAME_OF_DTYPE,
    Tensors,
    base_of,
    broken,
    encoded_header,
    metadata_of,
    read_header,
)
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.gallery.part import Part, PartName

__all__ = ["digest_of", "read_part", "write_part"]

_BLOCK: Final = 1 << 22
_WORTH_THREADS: Final = 1 << 23  # bytes; hashing less than this on one thread is quicker

Array = npt.NDArray[Any]


def digest_of(part: Part) -> str:
    """Return the SHA-256 (hex) over the metadata and every tensor's name, dtype, shape and blocks."""
    tensors = _tensors(part)
    digest = hashlib.sha256(json.dumps(metadata_of(part), sort_keys=True).encode())
    blocks = [block for array in tensors.values() for block in _blocks(array)]
    if sum(len(block) for block in blocks) < _WORTH_THREADS:
        hashes = iter([_sha256(block) for block in blocks])
    else:
        with ThreadPoolExecutor(available_cpus()) as pool:  # hashlib works without the GIL
            hashes = iter(list(pool.map(_sha256, blocks)))
    for name, array in tensors.items():
        digest.update(f"\n{name} {NAME_OF_DTYPE[array.dtype]} {list(array.shape)}\n".encode())
        for _ in range(-(-array.nbytes // _BLOCK)):
            digest.update(next(hashes))
    return digest.hexdigest()


def write_part(file: BinaryIO, part: Part, digest: str) -> None:
    """Write ``part`` to an open file; ``digest`` comes from :func:`digest_of`."""
    tensors = _tensors(part)
    file.write(encoded_header({**metadata_of(part), "sha256": digest}, tensors))
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
        OSError: it is no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        metadata, specs, data_start = read_header(path, file)
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
        raise broken(path, "its checksum does not match its content")
    if path.stem.rpartition("-")[2] != digest[:8]:
        raise broken(path, f"its name does not fit its content, whose checksum begins with {digest[:8]}")
    if name is not None and digest != name.sha256:
        raise broken(path, f"the part above it was written over other content, SHA-256 {name.sha256}")
    part.check(str(path))
    return part, digest


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
        base_of(path, metadata),
        int(metadata["next_id"]),
        metadata["layout_reason"],
        int(metadata["distinct"]) if metadata["distinct"] else None,
    )
    if metadata["count"] != str(part.count):
        raise broken(path, f"its metadata counts {metadata['count']} codes, its tensors {part.count}")
    return part


def _blocks(array: Array) -> Iterator[memoryview]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), _BLOCK):
        yield flat[start : start + _BLOCK]


def _sha256(block: memoryview) -> bytes:
    return hashlib.sha256(block).digest()
