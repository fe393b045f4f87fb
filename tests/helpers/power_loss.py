"""Changes of files that must survive a power loss and failing system calls: ``python power_loss.py FOLDER [NAME ...]``.

Each change is recorded under strace, and every state that a power loss may leave (:mod:`disk`) is read as a user would:
it must be the old one or the new one, whole, and the new one once the change has returned. The same is done without the
fsyncs of each line of code, which must then leave a state that is neither: no fsync is there for nothing. Then each
call of the changes that are named fails in turn. What was found is printed as JSON.
"""

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from disk import read_tree, trace_of, write_tree
from system_calls import failing, recorded

from dmsh_export.manifest import publish, read_manifest, write_manifest
from dmsh_model import checkpoint
from dmsh_model.data import image_cache
from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import ImageSet

SPACE = {"bits": 64, "fingerprint": "f" * 64}
CODES = uniform_codes(40, 64, seed=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
# What each call may be refused with. A call that is not here cannot fail for want of room, descriptors or a sound disk.
ERRORS = {
    "openat": ("EMFILE", "ENOSPC"), "write": ("ENOSPC", "EIO"), "fsync": ("EIO",), "rename": ("ENOSPC", "EIO"),
    "renameat2": ("EIO",), "unlink": ("EIO",), "mkdir": ("ENOSPC",), "chmod": ("EIO",), "fchmod": ("EIO",),
    "fchmodat": ("EIO",), "flock": ("ENOLCK",), "ftruncate": ("EIO",),
}  # fmt: skip
# Where the call of fsync is looked for: these hand it on.
HANDED_ON = ("_fsync", "fsync_folder", "noted")


@dataclass(frozen=True)
class Change:
    """``prepare(folder)``, then ``change(folder)``; ``seen(folder)`` is what a user finds: None if there is nothing.

    ``between`` are the only other findings that a power loss may leave: refusals that say what to do. A change that
    ``may_be_lost`` may leave the old state even after it has returned.
    ``again(folder)`` must succeed after a change that failed.
    """

    prepare: object
    change: object
    seen: object
    again: object
    between: tuple = ()
    may_be_lost: bool = False


def keys(first, count):
    return [f"image-{number}" for number in range(first, first + count)]


def built(folder):
    gallery.build(folder / "gallery", CODES[:20], None, keys(0, 20), **SPACE)


def two_versions(folder):
    built(folder)
    appended(folder)


def appended(folder):
    gallery.append(folder / "gallery", CODES[20:23], None, keys(20, 3))


def rebuilt(folder):
    gallery.build(folder / "gallery", CODES[5:15], None, keys(5, 10), overwrite=True, **SPACE)


def gallery_seen(folder):
    try:
        snapshot = gallery.open_current(folder / "gallery")
    except InputError as error:
        if "is not a gallery" in str(error):
            return None
        raise
    held = snapshot.contents()
    modes = [oct(path.stat().st_mode & 0o777) for path in (snapshot.path, folder / "gallery" / "CURRENT")]
    return [snapshot.version, held.ids.tolist(), held.codes.tobytes().hex(), list(held.keys), *modes]


def rolled_back(folder):
    two_versions(folder)
    gallery.rollback(folder / "gallery")


def appended_otherwise(folder):
    gallery.append(folder / "gallery", CODES[30:32], None, keys(30, 2))


def gallery_and_the_version_before_seen(folder):
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder / "gallery", Path(place) / "gallery")
        try:
            gallery.rollback(copy)
            before = gallery_seen(Path(place))
        except InputError:
            before = None
    return [gallery_seen(folder), before]


def weights(letter):
    def save(folder):
        header = {"format": checkpoint.FORMAT, "config": {"of": letter}}
        checkpoint.write_folder(folder / "checkpoint", header, letter.encode() * 500)

    return save


def weights_seen(folder):
    if not (folder / "checkpoint").exists():
        return None
    header = checkpoint.read_header(folder / "checkpoint")
    return [header["config"]["of"], (folder / "checkpoint" / checkpoint.WEIGHTS_FILE).read_text()]


def model(letter):
    def export(folder):
        with publish(folder / "model.onnx") as (draft,):
            draft.write_bytes(letter.encode() * 500)
            write_manifest(
                draft, kind="onnx", fingerprint=letter, made_from={}, options={}, packages=(), results={}
            )  # fmt: skip

    return export


def model_seen(folder):
    path = folder / "model.onnx"
    if not path.exists() and not path.with_name("model.onnx.json").exists():
        return None
    try:
        return [read_manifest(path)["fingerprint"], path.read_text()]
    except InputError as error:
        return next((said for said in MODEL_REFUSED if said in str(error)), str(error))


MODEL_REFUSED = ("is missing: every artefact", "is about another file", "does not exist, or is not a file")


def cached(folder):
    batches = [ImageSet(PIXELS[:1], ["a"], []), ImageSet(PIXELS[1:], ["b"], [])]
    image_cache.gather(lambda: iter(batches), 2, 8, key=lambda: "k" * 32, cache=folder / "cache")


def cache_seen(folder):
    found = image_cache._read(folder / "cache" / f"images-{'k' * 32}", 8)
    return None if found is None else [found.images.tobytes().hex(), found.names]


CHANGES = {
    "a first build": Change(lambda folder: None, built, gallery_seen, rebuilt),
    "a build over another": Change(two_versions, rebuilt, gallery_seen, appended),
    "an append": Change(built, appended, gallery_seen, rebuilt),
    "a removal": Change(
        two_versions, lambda folder: gallery.remove(folder / "gallery", np.array([3, 21])), gallery_seen, appended
    ),
    "a compaction": Change(two_versions, lambda folder: gallery.compact(folder / "gallery"), gallery_seen, appended),
    "a rollback": Change(two_versions, lambda folder: gallery.rollback(folder / "gallery"), gallery_seen, appended),
    "an append after a rollback": Change(
        rolled_back, appended_otherwise, gallery_and_the_version_before_seen, appended
    ),
    "a first checkpoint": Change(lambda folder: None, weights("n"), weights_seen, weights("m")),
    "a checkpoint over another": Change(weights("o"), weights("n"), weights_seen, weights("m")),
    "a first export": Change(lambda folder: None, model("n"), model_seen, model("m"), MODEL_REFUSED),
    "an export over another": Change(model("o"), model("n"), model_seen, model("m"), MODEL_REFUSED),
    "a cache of images": Change(lambda folder: None, cached, cache_seen, cached, may_be_lost=True),
}  # fmt: skip


def examined(change, folder, failures):
    """Return what was found of one change, in ``folder``, which is empty; ``failures``: whether its calls fail too."""
    start = folder / "start"
    start.mkdir()
    change.prepare(start)
    old, tree = change.seen(start), read_tree(start)
    done = shutil.copytree(start, folder / "done")
    places = folder / "places"
    calls, failed = recorded(lambda: _with_places(change, done, places))
    assert failed is None, failed
    lines = places.read_text().split()
    new = change.seen(done)
    assert new not in (None, old)
    trace = trace_of(done, tree, calls)
    assert sum(step.kind == "fsync" for step in trace.steps) == len(lines), "an fsync was not seen"

    def wrong(states):
        for finished, state in states:
            finding = _finding(change, state, folder)
            allowed = (new,) if finished and not change.may_be_lost else (old, new, *change.between)
            if finding not in allowed:
                yield f"{'done' if finished else 'under way'}: {str(finding)[:300]}"

    states = list(trace.states())
    needless = []
    for line in sorted(set(lines)):
        without = trace.without({number for number, each in enumerate(lines) if each == line})
        if next(wrong(without.states()), None) is None:
            needless.append(line)
    return {
        "states": len(states), "wrong": list(wrong(states)), "fsyncs": sorted(set(lines)), "needless": needless,
        **(_with_failures(change, start, calls, (old, new), folder) if failures else {}),
    }  # fmt: skip


def _finding(change, state, folder, known={}):  # noqa: B006  one state is read once
    key = (id(change), frozenset(state.items()))
    if key not in known:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            write_tree(state, Path(place))
            try:
                known[key] = change.seen(Path(place))
            except Exception as error:  # what a user would be told
                known[key] = f"{type(error).__name__}: {error}".replace(place, "")
    return known[key]


def _with_places(change, folder, places):
    """Make the change; write which lines of code asked for each fsync."""
    fsync, lines = os.fsync, []

    def noted(handle):
        frame = sys._getframe(1)
        while frame.f_code.co_name in HANDED_ON:
            frame = frame.f_back
        lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        fsync(handle)

    os.fsync = noted
    change.change(folder)
    places.write_text("\n".join(lines))


def _with_failures(change, start, calls, allowed, folder):
    counts, cases, odd, unnamed = Counter(call.name for call in calls), 0, [], []
    for name, errors in ERRORS.items():
        for number in range(1, counts[name] + 1):
            for error in errors:
                place = folder / "failing"
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(start, place)
                made, failed = failing(lambda place=place: change.change(place), name, number, error)
                if not any(call.name == name and call.error == error for call in made):
                    continue  # one that only the recording made
                cases += 1
                case = f"{error} of {name} {number}"
                finding = _seen_or_error(change, place)
                if finding not in (allowed if failed else allowed[1:]) and not (failed and finding in change.between):
                    odd.append(f"{case} ({failed}): {str(finding)[:200]}")
                if failed and not failed.startswith(("OSError: /", "InputError: ")):
                    unnamed.append(f"{case}: {failed}")
                change.again(place)
                left = [path.name for path in (place / "gallery").glob(".*") if path.name != ".lock"]
                after = _seen_or_error(change, place)
                if left or not isinstance(after, list):
                    odd.append(f"{case}: {left} were left, and after the next change there is {after}")
    return {"failures": cases, "odd": odd, "unnamed": unnamed}


def _seen_or_error(change, place):
    try:
        return change.seen(place)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder, failing_changes):
    found = {}
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found[name] = examined(change, Path(place).resolve(), name in failing_changes)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
