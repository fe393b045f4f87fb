"""Galleries: a folder of immutable, versioned snapshots of codes, and a pointer to the one that serves.

    gallery/CURRENT                                    the version that serves, one line
    gallery/gallery-00000002-9f31c07a.safetensors      a snapshot; the one before it is kept too
    gallery/.lock                                      held by the one writer

A version is a counter and the first 8 hex digits of the content's checksum: it sorts by age, and a gallery
rebuilt from scratch never repeats a version with other content.

Invariant: rows lie in ascending id order. (distance, row) order, which the search gives, is therefore
(distance, id) order, which the contract asks for. Writers sort, readers check.

A writer writes a new name, fsyncs it, and only then moves the pointer with ``os.replace``: killed at any
moment, it leaves the old version serving, and its leftovers are swept by the next writer. Readers map their
snapshot; deleting an old file does not disturb them.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.errors import InputError
from dmsh_serving.files import umask, write_atomically
from dmsh_serving.snapshot import Ids, SearchResult, Snapshot
from dmsh_serving.snapshot_file import (
    SnapshotContent,
    check_content,
    digest_of,
    read_snapshot,
    write_snapshot,
)

__all__ = ["SearchResult", "Snapshot", "append", "build", "current_version", "open_current", "remove"]

CURRENT: Final = "CURRENT"
LOCK: Final = ".lock"
KEPT_SNAPSHOTS: Final = 2

_VERSION = re.compile(r"(\d{8})-[0-9a-f]{8}")


def current_version(folder: Path) -> str:
    """Return the version that ``CURRENT`` names; cheap enough to watch.

    Raises:
        InputError: no gallery there, or the pointer is damaged.
    """
    pointer = folder / CURRENT
    try:
        with pointer.open("rb") as file:
            text = file.read(64).decode("ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is not a gallery (no {CURRENT} in it): make one with dmsh-serve gallery build"
        ) from None
    if not _VERSION.fullmatch(text):
        raise InputError(f"{pointer} is damaged: it holds {text!r}, not the name of a version")
    return text


def open_current(folder: Path, *, fingerprint: str | None = None, bits: int | None = None) -> Snapshot:
    """Map the version that serves and check it whole.

    Args:
        folder: the gallery.
        fingerprint: refuse a gallery of another code space.
        bits: refuse a gallery of another code width.

    Raises:
        InputError: missing, damaged, or another fingerprint or bit count than asked for (both are named).
    """
    version = current_version(folder)
    while True:
        try:
            snapshot = Snapshot(version, _path(folder, version), read_snapshot(_path(folder, version)))
            break
        except FileNotFoundError:
            # Between reading the pointer and opening the file, writers may have moved on and swept it.
            newer = current_version(folder)
            if newer == version:
                raise InputError(f"{_path(folder, version)} is missing, yet {CURRENT} names it") from None
            version = newer
    _check_code_space(snapshot, folder, fingerprint, bits)
    return snapshot


def build(
    folder: Path,
    codes: Codes,
    ids: Ids | None,
    keys: Sequence[str] | None,
    *,
    bits: int,
    fingerprint: str,
    overwrite: bool = False,
) -> Snapshot:
    """Make a gallery (or, with ``overwrite``, a new version that replaces all of an existing one).

    Args:
        folder: made if it does not exist; its parent must.
        codes: (N, ceil(bits/8)) uint8.
        ids: (N,) int64, unique, 0 or more, in any order; None gives 0 to N - 1.
        keys: N names, or None for a gallery without keys.
        bits: bits a code.
        fingerprint: of the model that made the codes.
        overwrite: replace an existing gallery, also one whose pointer is damaged.

    Raises:
        InputError: bad codes, ids or keys, an existing gallery, or another writer at work.
    """
    content = _content(codes, np.arange(len(codes)) if ids is None else ids, keys, bits, fingerprint)
    if not folder.is_dir():
        if folder.exists() or not folder.parent.is_dir():
            raise InputError(f"{folder} cannot be made a gallery: it is a file, or its parent folder is missing")
        folder.mkdir(exist_ok=True)
    with _writing(folder):
        if (folder / CURRENT).exists() and not overwrite:
            raise InputError(f"{folder} already holds a gallery: append to it, or replace it with --overwrite")
        return _publish(folder, content)


def append(
    folder: Path,
    codes: Codes,
    ids: Ids | None,
    keys: Sequence[str] | None,
    *,
    bits: int | None = None,
    fingerprint: str | None = None,
) -> Snapshot:
    """Add codes as a new version; arguments as in :func:`build`, ids None continue after the largest.

    Raises:
        InputError: also when an id is already there, keys are given to a gallery without (or the reverse), or
            the codes are of another bit count or fingerprint than the gallery.
    """
    with _writing(folder):
        old = open_current(folder, fingerprint=fingerprint, bits=bits)
        if ids is None:
            first = int(old.ids[-1]) + 1 if old.count else 0
            ids = np.arange(first, first + len(codes))
        if old.count and old.has_keys != (keys is not None):
            raise InputError(
                f"{folder} has {'' if old.has_keys else 'no '}keys: append {'with' if old.has_keys else 'without'} keys"
            )
        new = _content(codes, ids, keys, old.bits, old.fingerprint)
        known = new.ids[np.isin(new.ids, old.ids)]
        if known.size:
            raise InputError(f"{folder} already has {_some(known)}: remove them first, or append under other ids")
        all_keys = None if keys is None else [*old.keys_of(np.arange(old.count)), *keys]
        all_ids = np.concatenate([old.ids, ids.astype(np.int64)])
        all_codes = np.concatenate([old.codes, codes])
        return _publish(folder, _content(all_codes, all_ids, all_keys, old.bits, old.fingerprint))


def remove(folder: Path, ids: Ids) -> Snapshot:
    """Drop the codes of ``ids`` (M,) int64 in a new version.

    Raises:
        InputError: an id that is not there (nothing is removed then), or another writer at work.
    """
    with _writing(folder):
        old = open_current(folder)
        unknown = ids[~np.isin(ids, old.ids)]
        if unknown.size:
            raise InputError(f"{folder} has no {_some(unknown)}")
        rows = np.flatnonzero(~np.isin(old.ids, ids))
        keys = old.keys_of(rows) if old.has_keys else None
        return _publish(folder, _content(old.codes[rows], old.ids[rows], keys, old.bits, old.fingerprint))


def _content(codes: Codes, ids: Ids, keys: Sequence[str] | None, bits: int, fingerprint: str) -> SnapshotContent:
    """Check codes, ids and keys, and bring them into ascending id order."""
    check_codes(codes, bits)
    if not fingerprint.strip():
        raise InputError("the fingerprint is empty: a gallery names the model that made its codes")
    if ids.shape != (len(codes),) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"ids must be integers [{len(codes)}], one a code, got {ids.dtype} {list(ids.shape)}")
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise InputError(f"id {ids.max()} is too large: ids are int64")
    if keys is not None and len(keys) != len(codes):
        raise InputError(f"{len(codes)} codes but {len(keys)} keys")
    order = np.argsort(ids, kind="stable")
    ids = ids[order].astype(np.int64)
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if repeated.size:
        raise InputError(f"{_some(np.unique(repeated))} given more than once: ids are unique")
    offsets, blob = (None, None) if keys is None else _packed_keys([keys[row] for row in order.tolist()])
    content = SnapshotContent(bits, fingerprint, codes[order], ids, offsets, blob)
    check_content(content, "gallery")
    return content


def _packed_keys(keys: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    encoded = []
    for key in keys:
        try:
            encoded.append(key.encode())
        except UnicodeEncodeError:
            raise InputError(f"key {key!a} is not valid text (UTF-8): rename the file, or give keys") from None
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(key) for key in encoded], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(encoded), np.uint8)


def _check_code_space(snapshot: Snapshot, folder: Path, fingerprint: str | None, bits: int | None) -> None:
    wrong = []
    if bits is not None and bits != snapshot.bits:
        wrong.append(f"its codes have {snapshot.bits} bits, not {bits}")
    if fingerprint is not None and fingerprint != snapshot.fingerprint:
        wrong.append(f"its fingerprint is {snapshot.fingerprint}, not {fingerprint}")
    if wrong:
        raise InputError(f"{folder} belongs to another model: {' and '.join(wrong)}; build a gallery with this model")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the gallery's lock; the system drops it when the process dies, however it dies."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: make the gallery with dmsh-serve gallery build")
    with (folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being changed by another process: try again when it is done") from None
        yield


def _publish(folder: Path, content: SnapshotContent) -> Snapshot:
    """Write ``content`` as the next version, move the pointer, sweep. The caller holds the lock."""
    existing = _snapshots(folder)
    digest = digest_of(content)
    number = max((int(_version_of(path)[:8]) for path in existing), default=0) + 1
    if number > 99_999_999:
        raise InputError(f"{folder} has used up its version numbers: build a new gallery")
    version = f"{number:08d}-{digest[:8]}"
    current = _served_version(folder)
    _sweep(folder, keep=[path for path in existing if current and _version_of(path) <= current])
    temporary = folder / f".gallery-{version}.tmp"
    try:
        with temporary.open("wb") as file:
            write_snapshot(file, content, digest)
        temporary.chmod(0o444 & ~umask())
        temporary.replace(_path(folder, version))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(folder)
    write_atomically(folder / CURRENT, f"{version}\n".encode())
    _fsync_folder(folder)
    _sweep(folder, keep=_snapshots(folder)[-KEPT_SNAPSHOTS:])
    return open_current(folder)


def _served_version(folder: Path) -> str | None:
    """Return the version that serves; None where there is none, or none that can be told from a damaged pointer."""
    try:
        return current_version(folder)
    except InputError:  # only build(overwrite=True) comes here with one: the others have opened the gallery
        return None


def _sweep(folder: Path, keep: list[Path]) -> None:
    """Delete snapshots other than ``keep`` and whatever a killed writer left behind."""
    leftovers = [*folder.glob(".gallery-*.tmp"), *folder.glob(f".{CURRENT}.*")]
    for path in (*leftovers, *(path for path in _snapshots(folder) if path not in keep)):
        path.unlink(missing_ok=True)


def _snapshots(folder: Path) -> list[Path]:
    """Return the snapshot files, oldest first."""
    return sorted(path for path in folder.glob("gallery-*.safetensors") if _VERSION.fullmatch(_version_of(path)))


def _version_of(path: Path) -> str:
    return path.name.removeprefix("gallery-").removesuffix(".safetensors")


def _path(folder: Path, version: str) -> Path:
    return folder / f"gallery-{version}.safetensors"


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _some(ids: npt.NDArray[np.integer]) -> str:
    shown = ", ".join(str(value) for value in ids[:5].tolist())
    more = f" and {ids.size - 5} more" if ids.size > 5 else ""
    return f"id{'s' if ids.size > 1 else ''} {shown}{more}"
