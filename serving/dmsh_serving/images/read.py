"""A folder of image files, or an .npy array of images -> decoded images with names, in bounded memory."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import check_images
from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import InputError, MemoryShortError, UnavailableError
from dmsh_serving.files import files_below, read_regular
from dmsh_serving.images.decode import MAX_FILE_BYTES, image_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.known_answer import check_decoder

__all__ = [
    "ImageSet",
    "Progress",
    "image_paths",
    "is_no_image",
    "iter_image_batches",
    "iter_listed_batches",
    "load_images",
    "load_npy",
    "none_away",
    "others_line",
    "refuse_away",
    "says_no_image",
]

# What names say plainly: files that lie beside images, and are none.
_NO_IMAGES: Final = frozenset(["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "license", "readme", "makefile"])
_NO_IMAGE_SUFFIXES: Final = frozenset([
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".css", ".js", ".yaml",
    ".yml", ".toml", ".ini", ".cfg", ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt",
    ".zip", ".tar", ".gz", ".7z", ".rar", ".py", ".ipynb", ".sh", ".bat", ".exe", ".lnk", ".url", ".db", ".sqlite",
    ".parquet", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".onnx", ".plan", ".mp3", ".wav", ".mp4", ".mov",
    ".avi", ".mkv", ".webm", ".aae", ".xmp",
])  # fmt: skip
_DEFAULT_BATCH: Final = 64
_SHOWN: Final = 3
_NO_IMAGE_FILE: Final = (errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.ENXIO)  # no file, or too large

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every batch."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and where they came from.

    Attributes:
        images: (N, H, W, 3) uint8, RGB.
        names: N names: the path below the folder, or ``file.npy[row]``.
        bad: one line for each file that could not be read, left out of the two above.
        absent: the names of those of them that did not exist.
    """

    images: npt.NDArray[np.uint8]
    names: list[str]
    bad: list[str]
    absent: list[str] = field(default_factory=list)


def load_images(
    source: Path,
    image_size: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
) -> ImageSet:
    """Read all images of ``source`` into memory; see :func:`iter_image_batches`."""
    batches = list(
        iter_image_batches(source, image_size, _DEFAULT_BATCH, framing, skip_bad=skip_bad, on_progress=on_progress)
    )
    return ImageSet(
        np.concatenate([batch.images for batch in batches]),
        [name for batch in batches for name in batch.names],
        [line for batch in batches for line in batch.bad],
    )


def iter_image_batches(
    source: Path,
    image_size: int,
    batch_size: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[ImageSet]:
    """Yield the images of ``source``, at most ``batch_size`` at a time.

    Two batches are in memory: the caller's, and the next, which is decoded while the caller works.

    Args:
        source: a folder, read recursively in the order of the relative paths (see :func:`image_paths`), or an .npy
            file, uint8 [N, image_size, image_size, 3].
        image_size: side of an image in pixels.
        batch_size: files per batch.
        framing: of the checkpoint that the images are for; an .npy file holds images that are framed.
        skip_bad: leave out files that cannot be read, and list them in ``bad``. Otherwise one such file is an
            error, raised when all files have been looked at, so that it names and counts them all.
        on_progress: called after every batch.

    Raises:
        InputError: nothing there, a wrong kind of file, or unreadable images (see ``skip_bad``).
        UnavailableError: as of :func:`refuse_away`.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: give at least 1")
    if source.is_dir():
        paths = image_paths(source)
        if not paths:
            raise InputError(f"{source} holds no images{_but_others(source)}: give a folder of images")
        yield from none_away(
            source, _batches_of_files(source, paths, image_size, batch_size, framing, skip_bad, on_progress)
        )
    elif source.suffix == ".npy":
        yield from _batches_of_array(source, image_size, batch_size, on_progress)
    elif source.exists():
        raise InputError(f"{source} is a file: give a folder of images, or an .npy file")
    else:
        raise InputError(f"{source} does not exist")


def iter_listed_batches(
    folder: Path,
    names: Sequence[str],
    image_size: int,
    batch_size: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    need_one: bool = True,
    on_progress: Progress | None = None,
) -> Iterator[ImageSet]:
    """Yield the files ``names``, paths below ``folder``, in that order; the rest as :func:`iter_image_batches`.

    Without ``need_one`` it is no error if ``skip_bad`` leaves nothing.
    """
    paths = [folder / name for name in names]
    yield from _batches_of_files(folder, paths, image_size, batch_size, framing, skip_bad, on_progress, need_one)


def image_paths(folder: Path) -> list[Path]:
    """Return every file below ``folder`` but those of :func:`other_paths`, sorted by relative path.

    Raises:
        InputError: a folder in it is a link, which could lead out of it or around in circles.
    """
    return [path for path in _paths(folder) if not is_no_image(path.name)]


def other_paths(folder: Path) -> list[Path]:
    """Return the files below ``folder`` whose names say plainly that they are no images, sorted by relative path.

    Hidden files and folders are not looked at.
    """
    return [path for path in _paths(folder) if is_no_image(path.name)]


def others_line(folder: Path) -> str | None:
    """Return a line that counts :func:`other_paths` and names some, or None if there are none."""
    names = [path.relative_to(folder).as_posix() for path in other_paths(folder)] if folder.is_dir() else []
    if not names:
        return None
    files = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
    return f"{files} no image by name and left out: {_some(names)}"


def _but_others(folder: Path) -> str:
    line = others_line(folder)
    return f" ({line})" if line else ""


def is_no_image(name: str) -> bool:
    """Say whether a file's name says plainly that it is no image."""
    lower = name.lower()
    return lower in _NO_IMAGES or Path(lower).suffix in _NO_IMAGE_SUFFIXES


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(files_below(folder))]


def load_npy(path: Path, what: str) -> npt.NDArray[np.generic]:
    """Map the .npy array at ``path`` read-only; never unpickles.

    Raises:
        InputError: missing, damaged, or an array of objects; ``what`` says what was expected.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: give an .npy file of {what}") from None
    except Exception as error:  # the parsers below NumPy raise nearly any kind for hostile bytes
        raise InputError(f"{path} is not an .npy file of {what}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays, not an .npy file of {what}")
    return array


def _batches_of_files(
    folder: Path,
    paths: list[Path],
    image_size: int,
    batch_size: int,
    framing: Framing,
    skip_bad: bool,
    on_progress: Progress | None,
    need_one: bool = True,
) -> Iterator[ImageSet]:
    check_decoder()
    bad: list[str] = []
    pool = ThreadPoolExecutor(available_cpus())  # Pillow decodes without the GIL

    def decoding(start: int) -> list[Future[npt.NDArray[np.uint8] | str]]:
        return [pool.submit(_read, path, folder, image_size, framing) for path in paths[start : start + batch_size]]

    try:
        coming = decoding(0)
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            decoded = [future.result() for future in coming]
            coming = decoding(start + batch_size)  # while the caller works on this batch
            refused = [item for item in decoded if isinstance(item, str)]
            images = [item for item in decoded if not isinstance(item, str)]
            named = [(path.relative_to(folder).as_posix(), item) for path, item in zip(part, decoded, strict=True)]
            names = [name for name, item in named if not isinstance(item, str)]
            absent = [name for name, item in named if isinstance(item, str) and item == _absent(name)]
            bad += refused
            if on_progress:
                on_progress(start + len(part), len(paths))
            if (images or refused) and (skip_bad or not bad):
                stacked = np.stack(images) if images else np.empty((0, image_size, image_size, 3), np.uint8)
                yield ImageSet(stacked, names, refused, absent)
    finally:
        pool.shutdown(cancel_futures=True)
    if need_one and len(bad) == len(paths):
        raise InputError(f"{folder}: none of {len(paths)} files can be read; {_some(bad)}")
    if bad and not skip_bad:
        raise InputError(
            f"{folder}: {len(bad)} of {len(paths)} files cannot be read (--skip-bad leaves them out); {_some(bad)}"
        )


def _read(path: Path, folder: Path, image_size: int, framing: Framing) -> npt.NDArray[np.uint8] | str:
    """Return the image, or one line that says why there is none: it is damaged, gone or no file.

    Raises:
        OSError, UnavailableError: it cannot be read, as on a disk that is away, or not decoded with the memory of the
            moment: that says nothing about the image.
    """
    name = path.relative_to(folder).as_posix()
    try:
        return image_from_bytes(read_regular(path, MAX_FILE_BYTES), image_size, framing, name=name)
    except MemoryShortError as error:
        raise UnavailableError(f"{error}: give more memory, or take the file away, and run it again") from error
    except InputError as error:
        return str(error)
    except FileNotFoundError:
        return _absent(name)
    except OSError as error:
        if not says_no_image(error, path):
            raise
        return f"{name}: {error.strerror or error}"


def says_no_image(error: OSError, path: Path) -> bool:
    """Say whether ``error`` is about what lies at ``path``, no file or too large a one, and not about the disk."""
    if error.errno not in _NO_IMAGE_FILE:
        return False
    return error.errno == errno.EFBIG or not path.is_file()  # of a file, a disk may say EINVAL for what went wrong


def refuse_away(folder: Path, absent: Iterable[str]) -> None:
    """Refuse to take for gone what was listed in a folder that is not there or empty now: its disk is not mounted.

    Raises:
        UnavailableError: one of the ``absent``, paths below ``folder``, was in such a folder.
    """
    for parent in {(folder / name).parent for name in absent}:
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            if next(entries, None):
                continue
        raise UnavailableError(f"{parent} is empty or away, but had images when they were listed: run it again")


def none_away(folder: Path, batches: Iterable[ImageSet]) -> Iterator[ImageSet]:
    """Yield ``batches`` of what was listed in ``folder``; errors as of :func:`refuse_away`."""
    for batch in batches:
        refuse_away(folder, batch.absent)
        yield batch


def _absent(name: str) -> str:
    return f"{name}: does not exist"


def _batches_of_array(path: Path, image_size: int, batch_size: int, on_progress: Progress | None) -> Iterator[ImageSet]:
    array = load_npy(path, f"images, uint8 [N, {image_size}, {image_size}, 3]")
    check_images(array, image_size, str(path))
    count = len(array)
    if count == 0:
        raise InputError(f"{path} holds no images")
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        images = np.array(array[start:stop], dtype=np.uint8)
        if on_progress:
            on_progress(stop, count)
        yield ImageSet(images, [f"{path.name}[{row}]" for row in range(start, stop)], [])


def _some(bad: list[str]) -> str:
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return "; ".join(bad[:_SHOWN]) + more
