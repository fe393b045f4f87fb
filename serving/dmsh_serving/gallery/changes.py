"""Build and change galleries: folders of codes, ids and keys; see :mod:`dmsh_serving.gallery.folder`.

An append or a removal writes as much as it changes, not the whole gallery: see :mod:`dmsh_serving.gallery.merging`.
Answers do not depend on the history of a gallery: they are ordered by (distance, id) over all its parts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.files import fsync_folder
from dmsh_serving.gallery.folder import CURRENT, current_version, next_id_of, open_current, part_paths, writing
from dmsh_serving.gallery.keys import Keys, joined_keys, packed_keys
from dmsh_serving.gallery.merging import compacted, grown, laid_out, plain_part
from dmsh_serving.gallery.part import Ids, Part, ascending_ids, no_rows
from dmsh_serving.gallery.publish import publish
from dmsh_serving.gallery.snapshot import Snapshot

GivenIds = npt.NDArray[np.integer]

__all__ = ["append", "build", "compact", "exchange", "merge", "refuse_known_keys", "remove", "remove_keys"]

_SHOWN_KEYS: Final = 3  # in an error
_PATIENCE_SECONDS: Final = 60.0  # what is exchanged may have taken hours to encode


def build(
    folder: Path,
    codes: Codes,
    ids: GivenIds | None,
    keys: Sequence[str] | Keys | None,
    *,
    bits: int,
    fingerprint: str,
    next_id: int = 0,
    overwrite: bool = False,
) -> Snapshot:
    """Make a gallery (or, with ``overwrite``, a new version that replaces all of an existing one).

    Args:
        folder: made if it does not exist; its parent must.
        codes: (N, ceil(bits/8)) uint8.
        ids: (N,) integers, unique, 0 or more and in int64, in any order; None gives 0 to N - 1.
        keys: N names, or None for a gallery without keys.
        bits: bits per code.
        fingerprint: names the model that made the codes.
        next_id: larger than every id that was ever given out, if that is more than the ids given here say.
        overwrite: replace an existing gallery, even if its pointer is damaged.

    Raises:
        InputError: bad codes, ids or keys, an existing gallery, or another writer at work.
    """
    part = _part(codes, ids, 0, keys, bits, fingerprint)
    return _build(folder, replace(part, next_id=max(part.next_id, next_id)), overwrite)


def _build(folder: Path, part: Part, overwrite: bool) -> Snapshot:
    part = laid_out(part)
    if not folder.is_dir():
        if folder.exists() or not folder.parent.is_dir():
            raise InputError(f"{folder} cannot be made a gallery: it is a file, or its parent folder is missing")
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
    with writing(folder):
        if not overwrite and ((folder / CURRENT).exists() or part_paths(folder)):
            lost = "" if (folder / CURRENT).exists() else f", though {CURRENT} is missing"
            raise InputError(f"{folder} already holds a gallery{lost}: append to it, or replace it with --overwrite")
        return publish(folder, part)


def append(
    folder: Path,
    codes: Codes,
    ids: GivenIds | None,
    keys: Sequence[str] | Keys | None,
    *,
    bits: int | None = None,
    fingerprint: str | None = None,
    new_keys: bool = False,
) -> Snapshot:
    """Add codes as a new version; arguments as in :func:`build`.

    ids None continue after the largest id that was ever given out, so that the id of a removed code never comes back.
    With ``new_keys``, keys that the gallery has already are an error.

    Raises:
        InputError: also when an id is already there, keys are given to a gallery without (or the reverse), or
            the codes are of another bit count or fingerprint than the gallery.
    """
    current_version(folder)  # refused before anything is written to it
    with writing(folder):
        old = open_current(folder, fingerprint=fingerprint, bits=bits)
        if old.count and old.has_keys != (keys is not None):
            raise InputError(
                f"{folder} has {'' if old.has_keys else 'no '}keys: append {'with' if old.has_keys else 'without'} keys"
            )
        if keys is not None and new_keys:
            _refuse_known_keys(folder, old, keys)
        new = _part(
            codes, ids, 0 if ids is not None else _first_id(folder, len(codes)), keys, old.bits, old.fingerprint
        )
        if not old.count:
            return publish(folder, laid_out(new), old)
        own = new.ids_of(np.arange(new.count))
        known = own[old.rows_of(own) != PAD_ID]
        if known.size:
            raise InputError(f"{folder} already has {_some(known)}: remove them first, or append under other ids")
        return publish(folder, grown(old, new, no_rows()), old)


def remove(folder: Path, ids: GivenIds) -> Snapshot:
    """Drop the codes of ``ids`` (M,) integers in a new version.

    Raises:
        InputError: an id that is not there or no integer (then nothing is removed), or another writer is at work.
    """
    current_version(folder)  # refused before anything is written to it
    with writing(folder):
        return _without(folder, open_current(folder), ids)


def remove_keys(folder: Path, keys: Iterable[str]) -> tuple[Snapshot, Ids]:
    """Drop all codes under ``keys`` in a new version; return it and the ids (M,) int64, ascending, that are gone.

    Raises:
        InputError: a gallery without keys, a key that it does not have (then nothing is removed), or another writer
            is at work.
    """
    current_version(folder)  # refused before anything is written to it
    with writing(folder):
        old = open_current(folder)
        ids = _ids_of_keys(folder, old, keys)
        return _without(folder, old, ids), ids


def _without(folder: Path, old: Snapshot, ids: GivenIds) -> Snapshot:
    wanted = ascending_ids(ids)
    rows = old.rows_of(wanted)
    unknown = wanted[rows == PAD_ID]
    if unknown.size:
        raise InputError(f"{folder} has no {_some(unknown)}")
    nothing = Part(old.bits, old.fingerprint, np.empty((0, old.parts[0].codes.shape[1]), np.uint8))
    return publish(folder, grown(old, nothing, np.sort(rows)), old)


def exchange(folder: Path, known: Snapshot, codes: Codes, keys: Sequence[str], removed: GivenIds) -> Snapshot | None:
    """Add codes under new ids and drop those of other ids, in one version; do nothing if another is served than known.

    Args:
        folder: the gallery.
        known: its version in which the change was thought out; None is returned if it serves no more.
        codes: (N, ceil(bits/8)) uint8.
        keys: N names.
        removed: (M,) integers, ids of ``known``.

    Raises:
        InputError: bad codes or keys, or another writer is at work, which is waited for a while.
    """
    with writing(folder, _PATIENCE_SECONDS):
        if current_version(folder) != known.version:
            return None
        new = _part(codes, None, _first_id(folder, len(codes)), keys, known.bits, known.fingerprint)
        if not known.count:
            return publish(folder, laid_out(new), known)
        return publish(folder, grown(known, new, np.sort(known.rows_of(ascending_ids(removed)))), known)


def compact(folder: Path) -> Snapshot:
    """Write the whole gallery as one part, in the layout that suits its codes now.

    Raises:
        InputError: no gallery there, a damaged one, or another writer is at work.
    """
    current_version(folder)  # refused before anything is written to it
    with writing(folder):
        old = open_current(folder)
        return publish(folder, compacted(old), old)


def merge(folders: Sequence[Path], out: Path, *, renumber: bool = False, overwrite: bool = False) -> Snapshot:
    """Make one gallery ``out`` with all codes of several galleries of one model.

    Args:
        folders: the galleries; they stay as they are.
        out: the new gallery's folder.
        renumber: give new ids, 0 on, in the order of ``folders`` and of their ids; otherwise ids are kept.
        overwrite: replace an existing gallery.

    Raises:
        InputError: nothing to merge, different models, some with keys and some without, or an id in two of them.
    """
    if not folders:
        raise InputError("there is nothing to merge: name the galleries")
    if out.resolve() in [folder.resolve() for folder in folders]:  # what is appended to it meanwhile would be lost
        raise InputError(f"{out} is one of the galleries to merge: write elsewhere, then rename")
    first = open_current(folders[0])
    bits, fingerprint = first.bits, first.fingerprint
    snapshots = [first, *(open_current(folder, bits=bits, fingerprint=fingerprint) for folder in folders[1:])]
    keyed = {snapshot.has_keys for snapshot in snapshots if snapshot.count}
    if len(keyed) > 1:
        raise InputError("some of these galleries have keys and some have none: they cannot be merged")
    contents = [snapshot.contents() for snapshot in snapshots]
    keys = [each.keys for each in contents if each.keys is not None]
    ids = None if renumber else np.concatenate([each.ids for each in contents])
    codes = np.concatenate([each.codes for each in contents])
    all_keys = joined_keys(keys) if True in keyed else None
    try:
        part = _part(codes, ids, 0, all_keys, bits, fingerprint)
    except InputError as error:
        if "more than once" in str(error):
            raise InputError(f"the galleries share ids: {error}; --renumber gives new ones") from None
        raise
    if not renumber:  # ids that are kept are those of the merged galleries, whose removed ones do not come back either
        part = replace(part, next_id=max(map(next_id_of, folders)))
    return _build(out, part, overwrite)


def refuse_known_keys(folder: Path, keys: Iterable[str]) -> None:
    """Raise :class:`InputError` if the gallery has a code under one of ``keys``."""
    _refuse_known_keys(folder, open_current(folder), keys)


def _refuse_known_keys(folder: Path, snapshot: Snapshot, keys: Iterable[str]) -> None:
    known = set(keys).intersection(snapshot.contents().keys or ())
    if known:
        raise InputError(
            f"{folder} already has {_some_keys(sorted(known))}: gallery sync brings it up to date, --again adds them a "
            "second time"
        )


def _ids_of_keys(folder: Path, snapshot: Snapshot, keys: Iterable[str]) -> Ids:
    contents = snapshot.contents()
    if contents.keys is None:
        raise InputError(f"{folder} has no keys: remove codes by id")
    wanted = set(keys)
    rows = [row for row, key in enumerate(contents.keys) if key in wanted]
    if unknown := wanted.difference(contents.keys[row] for row in rows):
        raise InputError(f"{folder} has no {_some_keys(sorted(unknown))}: see gallery list")
    return np.asarray(contents.ids[rows])


def _first_id(folder: Path, count: int) -> int:
    """Return the first of ``count`` ids that were never given out."""
    next_id = next_id_of(folder)
    if next_id + count > 2**63:
        raise InputError(f"{folder} has given out id {next_id - 1}: no {count} ids are left, give your own")
    return next_id if count else 0


def _part(
    codes: Codes,
    ids: GivenIds | None,
    first_id: int,
    keys: Sequence[str] | Keys | None,
    bits: int,
    fingerprint: str,
) -> Part:
    """Check codes, ids (None: from ``first_id`` on) and keys, and bring them into ascending id order."""
    check_codes(codes, bits)
    if not fingerprint.strip():
        raise InputError("the fingerprint is empty: a gallery names the model that made its codes")
    if keys is not None and len(keys) != len(codes):
        raise InputError(f"{len(codes)} codes but {len(keys)} keys")
    packed = keys if keys is None or isinstance(keys, Keys) else packed_keys(keys)
    codes = np.ascontiguousarray(codes)
    if ids is None:
        part = Part(bits, fingerprint, codes, None, first_id, keys=packed)
    else:
        order, ascending = _order(ids, len(codes))
        part = plain_part(
            Part(bits, fingerprint, codes[order], ascending, keys=None if packed is None else packed.take(order))
        )
    part = replace(part, next_id=part.last_id + 1)
    part.check("gallery")
    return part


def _order(ids: GivenIds, count: int) -> tuple[Ids, Ids]:
    """Return the order that sorts ``ids``, and the sorted ids; refuse what cannot be the ids of ``count`` codes."""
    if ids.shape != (count,) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"ids must be integers [{count}], one a code, got {ids.dtype} {list(ids.shape)}")
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise InputError(f"id {ids.max()} is too large: ids are int64")
    order = np.argsort(ids, kind="stable")
    ascending = ids[order].astype(np.int64)
    if count and ascending[0] < 0:
        raise InputError(f"id {ascending[0]} is negative; ids are 0 or more")
    repeated = ascending[1:][ascending[1:] == ascending[:-1]]
    if repeated.size:
        raise InputError(f"{_some(ascending_ids(repeated))} given more than once: ids are unique")
    return order, ascending


def _some(ids: GivenIds) -> str:
    shown = ", ".join(str(value) for value in ids[:5].tolist())
    more = f" and {ids.size - 5} more" if ids.size > 5 else ""
    return f"id{'s' if ids.size > 1 else ''} {shown}{more}"


def _some_keys(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return f"key{'s' if len(keys) > 1 else ''} {', '.join(keys[:_SHOWN_KEYS])}{more}"
