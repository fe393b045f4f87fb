"""Serve or restore an older version when the one that should serve is damaged."""

import contextlib
from pathlib import Path

from dmsh_serving.checks import check_model
from dmsh_serving.errors import InputError, OtherModelError
from dmsh_serving.files import write_atomically
from dmsh_serving.gallery.folder import (
    CURRENT,
    OTHER_MODEL,
    named_version,
    open_current,
    open_version,
    part_paths,
    writing,
)
from dmsh_serving.gallery.header import version_of
from dmsh_serving.gallery.snapshot import Snapshot

__all__ = ["open_sound", "rollback"]


def open_sound(
    folder: Path, *, fingerprint: str | None = None, bits: int | None = None
) -> tuple[Snapshot, Exception | None]:
    """Open the version that ``CURRENT`` names or, if that cannot be used, the newest sound one before it.

    Returns:
        The version, and why it is not the one that ``CURRENT`` names; None if it is.

    Raises:
        InputError: the gallery is of another fingerprint or bit count than asked for, or no version is sound.
    """
    try:
        return open_current(folder, fingerprint=fingerprint, bits=bits), None
    except OtherModelError:
        raise
    except (InputError, OSError) as damage:
        snapshot = _newest_sound(folder, fingerprint, bits) if folder.is_dir() else None
        if snapshot is None:
            raise
        return snapshot, damage


def rollback(folder: Path) -> Snapshot:
    """Let ``CURRENT`` name the newest sound version before the one that it names now, which stays until the next write.

    Raises:
        InputError: there is no such version, or another writer is at work.
    """
    with writing(folder):
        snapshot = _newest_sound(folder)
        if snapshot is None:
            before = f" before {named}" if (named := named_version(folder)) else ""
            raise InputError(f"{folder} has no sound version{before}: build the gallery again with --overwrite")
        write_atomically(folder / CURRENT, f"{snapshot.version}\n".encode())
        return snapshot


def _newest_sound(folder: Path, fingerprint: str | None = None, bits: int | None = None) -> Snapshot | None:
    """Return the newest whole version before the one that ``CURRENT`` names, or of all if it names none."""
    named = named_version(folder)
    for version in sorted(map(version_of, part_paths(folder)), reverse=True):
        if named is None or version < named:
            with contextlib.suppress(InputError, OSError):
                snapshot = open_version(folder, version)
                check_model(folder, snapshot, bits=bits, fingerprint=fingerprint, advice=OTHER_MODEL)
                return snapshot
    return None
