"""Images decoded once: into memory, or into a folder that later runs map instead of decoding again.

An entry is two files named by the key of what was decoded (see :func:`files_key`): the pixels, raw, and a JSON file
that is written last, so that an entry is whole or not there. Another list, a changed file or another decoder is another
key. Entries may be deleted at any time.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import PIL

from dmsh_serving.errors import InputError
from dmsh_serving.files import naming, state_of, write_atomically
from dmsh_serving.images.decode import decode_recipe
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import ImageSet

__all__ = ["files_key", "gather", "pixels_key", "refuse_bad"]

GIB = 1 << 30


def files_key(root: Path, names: Sequence[str], image_size: int, framing: Framing) -> str:
    """Return the key of files below ``root``.

    The folder is part of it, and when a file was last changed: files unpacked from archives may have equal names, sizes
    and times. Another order or decoder is another key, too.

    Raises:
        OSError: the disk does not say whether a file is there.
    """
    digest = _decoder(image_size, framing)
    digest.update(f"{root.resolve()}\n".encode(errors="surrogateescape"))
    for name in names:
        digest.update(f"{name}\0{state_of(root / name, by_change=True)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def pixels_key(pixels: npt.NDArray[np.uint8], image_size: int, framing: Framing) -> str:
    """Return the key of images that lie in memory, (N, H, W, 3), from their content."""
    digest = _decoder(image_size, framing)
    digest.update(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _decoder(image_size: int, framing: Framing) -> "hashlib._Hash":
    return hashlib.sha256(f"{decode_recipe(framing)}\nPillow {PIL.__version__}\n{image_size}\n".encode())


def gather(
    batches: Callable[[], Iterator[ImageSet]],
    count: int,
    image_size: int,
    *,
    key: Callable[[], str],
    cache: Path | None,
) -> ImageSet:
    """Return the images of ``batches`` as one set, from the cache where they are there.

    Args:
        batches: called to decode, where that is needed.
        count: images that ``batches`` yields at most.
        image_size: side of an image in pixels.
        key: called for the name of the cache's entry.
        cache: a folder, made where it is missing; the images are then a mapped file. None gathers them in memory.

    Raises:
        InputError: not enough memory or room, another process is writing the same entry, files changed or went away
            while they were decoded, or what ``batches`` raises.
    """
    size = count * image_size * image_size * 3
    if cache is None:
        _require_memory(size)
        return _in_memory(batches(), count, image_size)
    if cache.exists() and not cache.is_dir():
        raise InputError(f"--cache {cache} is not a folder")
    cache.mkdir(parents=True, exist_ok=True)
    name = key()
    entry = cache / f"images-{name[:32]}"
    found = _read(entry, image_size)
    if found is None:
        _write(entry, _unchanged(batches(), key, name), size, image_size)
        found = _read(entry, image_size)
    if found is None:
        raise InputError(f"{entry}: the cache was changed while it was written: try again")
    return found


def refuse_bad(root: Path, found: ImageSet, skip_bad: bool) -> None:
    """Raise :class:`InputError` for unreadable files that an entry written with ``skip_bad`` brings back."""
    if found.bad and not skip_bad:
        raise InputError(
            f"{root}: {len(found.bad)} files cannot be read (--skip-bad leaves them out); the first: {found.bad[0]}"
        )


def _in_memory(batches: Iterable[ImageSet], count: int, image_size: int) -> ImageSet:
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    names: list[str] = []
    bad: list[str] = []
    for batch in batches:
        images[len(names) : len(names) + len(batch.names)] = batch.images
        names += batch.names
        bad += batch.bad
    return ImageSet(images[: len(names)], names, bad)


def _read(entry: Path, image_size: int) -> ImageSet | None:
    """Return the entry, or None where it is not there or not whole."""
    try:
        record = json.loads(entry.with_suffix(".json").read_bytes())
        names, bad = record["names"], record["bad"]
        shape = (len(names), image_size, image_size, 3)
        pixels = entry.with_suffix(".rgb")
        if pixels.stat().st_size != np.prod(shape):
            return None
        # Copy on write: PyTorch warns of memory that it may not write to, and the file stays as it is.
        images = np.asarray(np.memmap(pixels, np.uint8, "c", shape=shape))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return ImageSet(images, names, bad)


def _unchanged(batches: Iterable[ImageSet], key: Callable[[], str], name: str) -> Iterator[ImageSet]:
    """Yield ``batches``; raise at the end if their key is no longer ``name``, which would keep what is not of it."""
    yield from batches
    if key() != name:
        raise InputError("images were changed, or their disk went away, while they were decoded: try again")


def _write(entry: Path, batches: Iterable[ImageSet], size: int, image_size: int) -> None:
    free = shutil.disk_usage(entry.parent).free
    if free < size:
        raise InputError(
            f"--cache {entry.parent}: the images need {size / GIB:.2f} GiB decoded, {free / GIB:.2f} GiB are free: "
            "give a folder with more room, or a smaller image size"
        )
    # One fixed name, so that what an interrupted run left is written over; locked, so that no two runs share it.
    unfinished = entry.with_suffix(".unfinished")
    with unfinished.open("ab") as file:
        try:
            with naming(unfinished):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{unfinished}: another process is decoding the same images: wait for it") from None
        if not _is_file_of(unfinished, file):  # who held the lock has just given it its last name, or removed it
            raise InputError(f"{unfinished}: another process has just decoded the same images: try again")
        with naming(unfinished):
            file.truncate(0)
        names: list[str] = []
        bad: list[str] = []
        try:
            for batch in batches:
                with naming(unfinished):
                    file.write(batch.images.tobytes())
                names += batch.names
                bad += batch.bad
            with naming(unfinished):
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        unfinished.replace(entry.with_suffix(".rgb"))
    record = {"image_size": image_size, "names": names, "bad": bad}
    write_atomically(entry.with_suffix(".json"), json.dumps(record).encode())


def _is_file_of(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _require_memory(size: int) -> None:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > installed:
        raise InputError(
            f"the images need {size / GIB:.1f} GiB decoded, this machine has {installed / GIB:.1f} GiB of memory: give "
            "--cache FOLDER, where they are decoded to once and mapped from"
        )
