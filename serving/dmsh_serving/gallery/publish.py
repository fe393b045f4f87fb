"""Publish a version of a gallery: what a kill or a power loss at any moment leaves is the old version or the new one.

A writer writes a new file, fsyncs it, and only then moves the pointer. If it is killed at any moment, the old version
goes on serving, and the next writer deletes what is left over. The last two versions are kept with all their parts, and
no part that was not taken back is deleted unless all parts of both are known.
"""

import contextlib
from dataclasses import replace
from pathlib import Path

from dmsh_serving.errors import InputError
from dmsh_serving.files import fsync_folder, whole_file, write_atomically
from dmsh_serving.gallery.folder import (
    CURRENT,
    leftover_paths,
    named_version,
    next_id_of,
    open_version,
    part_path,
    part_paths,
)
from dmsh_serving.gallery.header import read_base, version_of
from dmsh_serving.gallery.part import Part
from dmsh_serving.gallery.part_file import digest_of, write_part
from dmsh_serving.gallery.snapshot import Snapshot

__all__ = ["publish"]


def publish(folder: Path, part: Part, known: Snapshot | None = None) -> Snapshot:
    """Write ``part`` as the next version, move the pointer, sweep. The caller holds the lock.

    ``known`` is the version that ``part`` is a change of, whose ids never come back; None for a new gallery.
    """
    existing = part_paths(folder)
    part = replace(part, next_id=max(part.next_id, part.last_id + 1, next_id_of(folder) if known else 0))
    digest = digest_of(part)
    number = max((int(version_of(path)[:8]) for path in existing), default=0) + 1
    if number > 99_999_999:
        raise InputError(f"{folder} has used up its version numbers: build a new gallery")
    version = f"{number:08d}-{digest[:8]}"
    served = named_version(folder)
    before = [name.version for name in known.names] if known else _versions_below(folder, served)
    # Parts stay until the new one is there: one that was rolled back may alone know the largest id that was given out.
    for path in leftover_paths(folder):
        path.unlink(missing_ok=True)
    with whole_file(part_path(folder, version), mode=0o444) as file:
        write_part(file, part, digest)
    try:
        snapshot = open_version(folder, version, known)
    except InputError as error:  # the codes may be those of a file that somebody writes to
        part_path(folder, version).unlink()
        raise InputError(f"{folder}: what was written is not what was given ({error}): do it again") from error
    # What was taken back goes before the pointer moves: a rollback must not find it below the new version. The new part
    # knows the ids that it gave out, and therefore stays once one of it is gone.
    taken_back = [path for path in existing if served is not None and version_of(path) > served]
    try:
        for path in taken_back:
            path.unlink(missing_ok=True)
        if taken_back:
            fsync_folder(folder)
        write_atomically(folder / CURRENT, f"{version}\n".encode())
    except OSError:
        if named_version(folder) == served and all(path.exists() for path in taken_back):
            # The next try would leave another one on a full disk.
            part_path(folder, version).unlink()
        raise
    kept = {*before, *(name.version for name in snapshot.names)}
    for path in existing:
        if before and version_of(path) not in kept:
            with contextlib.suppress(OSError):  # the change is published; the next one tries again
                path.unlink(missing_ok=True)
    return snapshot


def _versions_below(folder: Path, version: str | None) -> list[str]:
    """Return ``version`` and the versions whose parts it stands on; none if one of these parts cannot be read."""
    found = []
    try:
        while version:
            found.append(version)
            base = read_base(part_path(folder, version))
            version = base.version if base else None
    except (InputError, OSError):
        return []
    return found
