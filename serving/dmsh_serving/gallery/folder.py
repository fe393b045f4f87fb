"""A gallery's folder: its files, the pointer to the version that serves, the writer's lock.

    gallery/CURRENT                                    the version that serves, one line
    gallery/gallery-00000002-9f31c07a.safetensors      a version's own part; it names the part below it
    gallery/.lock                                      held by the one writer

A version is a counter and the first 8 hex digits of the content's checksum: versions sort by age, and a rebuilt gallery
never gives an old version's name to other content.

Readers map the files; deleting an old file does not disturb them. :mod:`dmsh_serving.gallery.publish` writes them.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmsh_serving.checks import check_model
from dmsh_serving.errors import InputError
from dmsh_serving.files import naming, open_regular
from dmsh_serving.gallery.header import is_version, read_next_id, version_of
from dmsh_serving.gallery.part import Part, PartName
from dmsh_serving.gallery.part_file import read_part
from dmsh_serving.gallery.snapshot import Snapshot, chained

__all__ = [
    "CURRENT",
    "OTHER_MODEL",
    "current_version",
    "leftover_paths",
    "named_version",
    "next_id_of",
    "open_current",
    "open_version",
    "part_path",
    "part_paths",
    "writing",
]

CURRENT: Final = "CURRENT"
LOCK: Final = ".lock"
OTHER_MODEL: Final = "build a gallery with this model"  # what to do about it
MAX_PARTS: Final = 64  # far above what writers make of any number of codes: each part is half the one below or less


def current_version(folder: Path) -> str:
    """Return the version that ``CURRENT`` names; cheap enough to watch.

    Raises:
        InputError: no gallery there, or the pointer is damaged.
    """
    pointer = folder / CURRENT
    try:
        with open_regular(pointer) as file:
            text = file.read(64).decode("ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is not a gallery (no {CURRENT} in it): make one with dmsh-serve gallery build"
        ) from None
    if not is_version(text):
        raise InputError(f"{pointer} is damaged: it holds {text!r}, not the name of a version")
    return text


def open_current(
    folder: Path, *, fingerprint: str | None = None, bits: int | None = None, known: Snapshot | None = None
) -> Snapshot:
    """Map the version that serves and check it whole.

    Args:
        folder: the gallery.
        fingerprint: refuse a gallery of another code space.
        bits: refuse a gallery of another code width.
        known: an older version; parts that both versions have are shared, not read and checked again.

    Raises:
        InputError: missing or damaged.
        OtherModelError: of another fingerprint or bit count than asked for (both are named).
    """
    version = current_version(folder)
    while True:
        try:
            snapshot = open_version(folder, version, known)
            break
        except FileNotFoundError as error:
            # Between reading the pointer and opening the files, writers may have moved on and swept them.
            newer = current_version(folder)
            if newer == version:
                raise InputError(f"{error.filename} is missing, yet {CURRENT} needs it") from None
            version = newer
    check_model(folder, snapshot, bits=bits, fingerprint=fingerprint, advice=OTHER_MODEL)
    return snapshot


def open_version(folder: Path, version: str, known: Snapshot | None = None) -> Snapshot:
    """Map one version and check it whole; see :func:`open_current`.

    Raises:
        FileNotFoundError: one of its files is not there.
    """
    shared = dict(zip(known.names, known.parts, strict=True)) if known else {}
    parts: list[Part] = []
    names: list[PartName] = []
    wanted: PartName | None = None
    path = part_path(folder, version)
    while True:
        if wanted in shared:
            part, digest = shared[wanted], wanted.sha256
        else:
            part, digest = read_part(path, wanted)
        parts.append(part)
        names.append(PartName(version_of(path), digest))
        if part.base is None:
            return chained(part_path(folder, version), parts[::-1], names[::-1])
        if len(parts) == MAX_PARTS:
            raise InputError(f"{part_path(folder, version)} cannot be used as a gallery: over {MAX_PARTS} parts")
        wanted = part.base
        path = part_path(folder, wanted.version)


@contextlib.contextmanager
def writing(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the gallery's lock; the system releases it when the process ends in any way.

    Raises:
        InputError: another process still holds it after ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    with (folder / LOCK).open("ab") as lock:
        while True:
            try:
                with naming(folder / LOCK):  # a file system that has no locks, as NFS without its lock service
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{folder} is being changed by another process: try again when it is done"
                    ) from None
            time.sleep(0.05)
        yield


def next_id_of(folder: Path) -> int:
    """Return the number above every id that the gallery has given out, versions that were taken back included."""
    highest = 0
    for path in part_paths(folder):
        with contextlib.suppress(InputError, FileNotFoundError):  # a damaged file that no version needs; one just swept
            highest = max(highest, read_next_id(path))
    return highest


def part_paths(folder: Path) -> list[Path]:
    """Return the files of all parts, oldest first.

    Raises:
        OSError: the folder cannot be listed; ``Path.glob`` takes it for empty.
    """
    found = (path for path in folder.iterdir() if path.match("gallery-*.safetensors"))
    return sorted(path for path in found if is_version(version_of(path)))


def leftover_paths(folder: Path) -> list[Path]:
    """Return the unfinished files of a writer that was killed."""
    return sorted(path for path in folder.iterdir() if path.name.startswith((".gallery-", f".{CURRENT}.")))


def part_path(folder: Path, version: str) -> Path:
    """Return the file of the part that makes ``version``."""
    return folder / f"gallery-{version}.safetensors"


def named_version(folder: Path) -> str | None:
    """Return the version that ``CURRENT`` names; None if it is missing or damaged."""
    try:
        return current_version(folder)
    except InputError:
        return None
