"""Make a gallery hold exactly the images of a folder: add what is new, remove what is gone, encode again what changed.

What changed is told by content. Beside its parts the gallery keeps a record, ``synced.jsonl``: the SHA-256 of each file
and the code that it gave. A file is left alone only if the record has its SHA-256, and the gallery has the recorded
code under its key; everything else is encoded. So a record that is missing, old or of another model costs time alone.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from dmsh_serving.codes import Codes, bytes_per_code
from dmsh_serving.cpu import available_cpus
from dmsh_serving.encoder.codes_of_images import codes_of_set
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.files import open_regular, write_atomically
from dmsh_serving.gallery.changes import exchange
from dmsh_serving.gallery.folder import open_current
from dmsh_serving.gallery.snapshot import Snapshot
from dmsh_serving.images.read import Progress, image_paths, iter_listed_batches, refuse_away

__all__ = ["RECORD", "Synced", "sync"]

RECORD = "synced.jsonl"


@dataclass(frozen=True, eq=False)
class Synced:
    """What a sync did.

    Attributes:
        snapshot: the version that serves now.
        added: keys that are new.
        changed: keys whose code is another.
        removed: keys that are gone; a key that was there twice counts here too.
        unchanged: number of images whose code stays, but for those listed and not found.
        bad: one line per image that cannot be read; its code, if there was one, is removed, unless the folder lists
            the image and yet it is not found: its disk may be away.
    """

    snapshot: Snapshot
    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]
    unchanged: int
    bad: Sequence[str]


def sync(
    folder: Path,
    images: Path,
    model: Path,
    batch: int,
    *,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
) -> Synced:
    """Make the gallery in ``folder`` hold the images of the folder ``images``; their keys are paths below it.

    All changes come in one version. The gallery is not locked while images are encoded: if another writer changes it
    meanwhile, what it holds is looked up again, and only what is missing then is encoded.

    Args:
        folder: the gallery, with keys.
        images: the folder; hidden files and files that are no images by name do not count.
        model: the ONNX file whose codes the gallery holds.
        batch: images encoded at once.
        skip_bad: leave out images that cannot be read, otherwise an error.
        on_progress: called with (images encoded, images to encode) after every batch.

    Raises:
        InputError: no gallery, one without keys or of another model, no images, or images that cannot be read.
        UnavailableError: the disk of the images, or of a folder among them, is away.
    """
    names = _listed(images, folder)
    digests = dict(zip(names, _digests([images / name for name in names]), strict=True))
    codes: dict[str, bytes] = {}
    bad: list[str] = []
    absent: list[str] = []
    tried: set[str] = set()
    with open_encoder(model) as encoder:
        fingerprint = encoder.fingerprint
        known = _read_record(folder, fingerprint)
        snapshot: Snapshot | None = None
        while snapshot is None:
            old = open_current(folder, fingerprint=fingerprint, bits=encoder.bits)
            if old.count and not old.has_keys:
                raise InputError(f"{folder} has no keys, which tell its images apart: build it again from images")
            held, repeated = _held(old)
            _refuse_emptied(images, held.keys() - digests.keys())
            unknown = [name for name in names if name not in held or known.get(name) != (digests[name], held[name][1])]
            untried = [name for name in unknown if name not in tried]
            read = partial(iter_listed_batches, skip_bad=skip_bad, need_one=False, on_progress=on_progress)
            for part in read(images, untried, encoder.image_size, batch, encoder.framing):
                refuse_away(images, part.absent)
                bad += part.bad
                absent += part.absent
                if len(part.images):
                    codes |= dict(zip(part.names, _rows(codes_of_set(encoder, part)), strict=True))
            tried.update(untried)
            unreadable = set(unknown) - set(codes)
            added = [name for name in codes if name not in held]
            changed = [name for name, code in codes.items() if name in held and held[name][1] != code]
            # What is not found may be listed all the same; what was not listed may have come since, by another sync.
            listed = set(_listed(images, folder)) if absent or held.keys() - digests.keys() else set(names)
            lost = unreadable - listed.intersection(absent)
            gone = [name for name in held if name in lost or (name not in digests and name not in listed)]
            ids = [held[name][0] for name in (*changed, *gone)] + [number for _, number in repeated]
            new = [*added, *changed]
            block = np.frombuffer(b"".join(codes[name] for name in new), np.uint8)
            block = block.reshape(len(new), bytes_per_code(old.bits))
            snapshot = exchange(folder, old, block, new, np.array(ids, np.int64)) if new or ids else old
    current = {name: codes.get(name) or held[name][1] for name in names if name not in unreadable}
    # One that was edited between the two readings has its code, but the next sync must encode it again.
    again = dict(zip(codes, _digests([images / name for name in codes]), strict=True))
    recorded = {
        name: (digests[name], code) for name, code in current.items() if again.get(name, digests[name]) == digests[name]
    }
    _write_record(folder, fingerprint, recorded)
    removed = [*gone, *(name for name, _ in repeated)]
    return Synced(snapshot, added, changed, removed, len(current) - len(added) - len(changed), bad)


def _listed(images: Path, folder: Path) -> list[str]:
    """Return the paths below ``images`` of what it holds; refuse to empty the gallery if there is nothing."""
    if not images.is_dir():
        raise InputError(f"{images} is not a folder: give the folder of images that the gallery is to hold")
    paths = image_paths(images)
    if not paths:
        raise InputError(f"{images} holds no images: a sync would empty {folder}; build a new gallery instead")
    return [path.relative_to(images).as_posix() for path in paths]


def _refuse_emptied(images: Path, absent: Collection[str]) -> None:
    """Refuse to take the images of a folder for gone that is there and empty: so is one whose disk is not mounted."""
    folders = {parent for name in absent for parent in PurePosixPath(name).parents} - {PurePosixPath()}
    for folder in sorted(folders):
        path = images / folder
        if path.is_dir() and not any(path.iterdir()):
            raise UnavailableError(
                f"{path} is empty, and the gallery holds images of it: its disk may be away; if they are gone, "
                "remove the folder too"
            )


def _held(snapshot: Snapshot) -> tuple[dict[str, tuple[int, bytes]], list[tuple[str, int]]]:
    """Return {key: (id, code)} of the newest code of each key, and (key, id) of the older ones."""
    contents = snapshot.contents()
    found: dict[str, tuple[int, bytes]] = {}
    older = []
    for key, number, code in zip(contents.keys or [], contents.ids.tolist(), _rows(contents.codes), strict=True):
        if key in found:
            older.append((key, found[key][0]))
        found[key] = (number, code)
    return found, older


def _rows(codes: Codes) -> list[bytes]:
    return [row.tobytes() for row in codes]


def _digests(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(available_cpus()) as pool:  # hashing lets go of the GIL
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # reading it as an image says why


def _read_record(folder: Path, fingerprint: str) -> dict[str, tuple[str, bytes]]:
    """Return {key: (SHA-256 of the file, its code)}; empty if there is no record of these codes."""
    try:
        with (folder / RECORD).open(encoding="utf-8") as lines:
            if json.loads(next(lines)) != {"fingerprint": fingerprint}:
                return {}
            return {key: (digest, bytes.fromhex(code)) for key, digest, code in map(json.loads, lines)}
    except (OSError, ValueError, TypeError, RecursionError, StopIteration):
        return {}


def _write_record(folder: Path, fingerprint: str, files: dict[str, tuple[str, bytes]]) -> None:
    lines = [json.dumps({"fingerprint": fingerprint})]
    lines += [json.dumps([key, digest, code.hex()]) for key, (digest, code) in files.items()]
    write_atomically(folder / RECORD, ("\n".join(lines) + "\n").encode())
