"""Changes that meet another writer, a kill, a full disk or one that fails: old or new serves, and no id comes back."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gallery_files import F, random_codes, snapshot_path

from dmsh_serving.errors import InputError
from dmsh_serving.gallery import folder as gallery_folder
from dmsh_serving.gallery import header
from dmsh_serving.gallery import publish as publishing
from dmsh_serving.gallery.changes import append, build, compact, remove
from dmsh_serving.gallery.folder import current_version, open_current
from dmsh_serving.gallery.rollback import rollback


def test_fault_17_of_two_writers_the_second_gets_a_clear_error_at_once(folder):
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for write in (
            lambda: append(folder, random_codes(1), None, ["x"]),
            lambda: remove(folder, np.array([100])),
            lambda: build(folder, random_codes(1), None, None, bits=16, fingerprint=F, overwrite=True),
        ):
            with pytest.raises(InputError, match="being changed by another process"):
                write()
    append(folder, random_codes(1), None, ["x"])


def test_fault_17_writers_that_race_lose_nothing(folder):
    """Several processes append until each has succeeded; every code must be there at the end."""
    code = (
        "import sys, time; import numpy as np\n"
        "from pathlib import Path\n"
        "from dmsh_serving.errors import InputError\n"
        "from dmsh_serving.gallery.changes import append\n"
        "for n in range(5):\n"
        "    while True:\n"
        "        try:\n"
        "            append(Path(sys.argv[1]), np.zeros((1, 2), np.uint8), None, [f'{sys.argv[2]}-{n}'])\n"
        "            break\n"
        "        except InputError as error:\n"
        "            assert 'another process' in str(error), error\n"
        "            time.sleep(0.002)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    snapshot = open_current(folder)
    assert sorted(snapshot.contents().keys)[:15] == [f"{w}-{n}" for w in range(3) for n in range(5)]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dmsh_serving import gallery
from dmsh_serving.gallery import changes, part_file, publish
folder, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "half a snapshot":
    real = part_file._blocks
    def half(array):
        yield next(real(array))[:100]
        die()
    publish.digest_of = lambda part: "0" * 64
    part_file._blocks = half
elif moment == "before the rename":
    Path.replace = die
elif moment == "before the pointer":
    publish.write_atomically = die
elif moment == "half a pointer":
    os.replace = die
gallery.build(folder, np.zeros((1000, 2), np.uint8), None, None, bits=16, fingerprint="f" * 64, overwrite=True)
"""


@pytest.mark.parametrize("moment", ["half a snapshot", "before the rename", "before the pointer", "half a pointer"])
def test_fault_18_a_writer_killed_at_any_moment_leaves_the_old_version_serving(folder, moment):
    version = current_version(folder)
    before = {path.name for path in folder.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(folder), moment], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name for path in folder.iterdir()} > before  # it did leave something behind
    assert current_version(folder) == version
    assert open_current(folder).count == 40
    append(folder, random_codes(1), None, ["after"])
    names = {path.name for path in folder.iterdir()}
    assert names == before | {snapshot_path(folder).name}  # the old part stays: the new one stands on it
    assert open_current(folder).count == 41


def test_fault_18_a_writer_killed_at_a_random_moment_leaves_a_whole_gallery(tmp_path):
    code = (
        "import sys; import numpy as np\n"
        "from pathlib import Path\n"
        "from dmsh_serving.gallery.changes import build\n"
        "codes = np.random.default_rng(0).integers(0, 256, (200_000, 8), dtype=np.uint8)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    build(Path(sys.argv[1]), codes, None, None, bits=64, fingerprint='f' * 64, overwrite=True)\n"
    )
    folder = tmp_path / "gallery"
    build(folder, random_codes(3, 8), None, None, bits=64, fingerprint=F)
    for delay in (0.01, 0.05, 0.11):
        with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(delay)
            writer.kill()
        assert open_current(folder).count in (3, 200_000)
    assert append(folder, random_codes(1, 8), None, None).count in (4, 200_001)
    assert len(list(folder.glob("gallery-*"))) <= 2
    assert not list(folder.glob(".*.tmp"))


def fail_on_a_full_disk(monkeypatch, write):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write()
    return caught


def test_fault_18_a_full_disk_leaves_the_old_version_and_no_leftovers(folder, monkeypatch):
    version, before = current_version(folder), sorted(folder.iterdir())
    caught = fail_on_a_full_disk(monkeypatch, lambda: append(folder, random_codes(1), None, ["x"]))
    assert Path(caught.value.filename).parent == folder  # or the one line would not say where
    assert (current_version(folder), sorted(folder.iterdir())) == (version, before)


def test_fault_18_an_id_does_not_come_back_when_the_writer_after_a_rollback_fails(folder, monkeypatch):
    append(folder, random_codes(3), None, ["a", "b", "c"])  # ids 140 to 142
    rollback(folder)
    fail_on_a_full_disk(monkeypatch, lambda: append(folder, random_codes(1), None, ["x"]))
    assert append(folder, random_codes(1), None, ["x"]).ids[-1] == 143


def test_fault_18_a_build_that_fails_leaves_a_gallery_whose_pointer_is_damaged_to_be_rolled_back(folder, monkeypatch):
    (folder / "CURRENT").write_text("")
    fail_on_a_full_disk(
        monkeypatch, lambda: build(folder, random_codes(1), None, None, bits=16, fingerprint=F, overwrite=True)
    )
    assert rollback(folder).count == 40


def fail(code):
    raise OSError(code, os.strerror(code))


def fail_a_listing(disk, number):
    """Let the ``number``-th listing of a folder fail, in a way that some of Python's functions take for empty."""
    listed = []

    def failing(listing):
        def maybe(*arguments):
            listed.append(arguments)
            if len(listed) == number:
                fail(errno.EACCES)
            return listing(*arguments)

        return maybe

    disk.setattr(os, "listdir", failing(os.listdir))
    disk.setattr(os, "scandir", failing(os.scandir))
    return listed


@pytest.mark.parametrize("change", ["append", "remove", "compact", "build"])
def test_a_folder_that_cannot_be_listed_for_a_moment_loses_no_part_and_no_id(folder, tmp_path, monkeypatch, change):
    append(folder, random_codes(3), None, ["a", "b", "c"])
    append(folder, random_codes(3), None, ["d", "e", "f"])  # ids 143 to 145
    rollback(folder)
    changes_of = {
        "append": lambda place: append(place, random_codes(1), None, ["x"]),
        "remove": lambda place: remove(place, np.array([100])),
        "compact": compact,
        "build": lambda place: build(place, random_codes(5), None, None, bits=16, fingerprint=F, overwrite=True),
    }
    for number in range(1, 20):
        place = shutil.copytree(folder, tmp_path / str(number))
        with monkeypatch.context() as disk:
            listed = fail_a_listing(disk, number)
            with contextlib.suppress(PermissionError):
                changes_of[change](place)
        after = open_current(place)
        if after.version == current_version(folder):
            assert append(place, random_codes(1), None, ["x"]).ids[-1] == 146
        elif change != "build":
            assert after.next_id == 146 + (change == "append")
        assert rollback(place).count == 43
        if len(listed) < number:
            break
    assert number > 2


def fail_to_open(disk, path):
    """Let no attempt to open ``path`` succeed, once the pointer has moved."""
    moved, write, opened = [], publishing.write_atomically, header.open_regular

    def move(*arguments):
        write(*arguments)
        moved.append(True)

    def refuse(file):
        return fail(errno.EMFILE) if moved and file == path else opened(file)

    disk.setattr(publishing, "write_atomically", move)
    disk.setattr(header, "open_regular", refuse)


def test_parts_whose_headers_cannot_be_read_after_the_pointer_has_moved_keep_those_below_them(folder, monkeypatch):
    append(folder, random_codes(8), None, [f"{number}" for number in range(8)])
    middle = snapshot_path(folder)
    with monkeypatch.context() as disk:
        fail_to_open(disk, middle)
        append(folder, random_codes(1), None, ["x"])
    assert len(open_current(folder).parts) == 3
    with monkeypatch.context() as disk:
        disk.setattr(publishing, "read_base", lambda _: fail(errno.EIO))
        build(folder, random_codes(1), None, None, bits=16, fingerprint=F, overwrite=True)
    assert rollback(folder).count == 49  # nothing was swept: what the version before stands on was not known
    build(folder, random_codes(1), None, None, bits=16, fingerprint=F, overwrite=True)
    assert len(list(folder.glob("gallery-*"))) == 4


def test_what_was_taken_back_is_not_served_by_a_rollback_after_a_writer_was_killed(folder, monkeypatch):
    good = append(folder, random_codes(5), None, list("abcde"))
    append(folder, random_codes(7), None, list("1234567"))
    assert rollback(folder).version == good.version

    def killed(path, **_):
        if current_version(folder) != good.version:
            raise KeyboardInterrupt
        removed(path)

    removed = Path.unlink
    with monkeypatch.context() as writer:
        writer.setattr(Path, "unlink", lambda path, missing_ok=False: killed(path))
        with contextlib.suppress(KeyboardInterrupt):
            append(folder, random_codes(3), None, list("xyz"))
    assert open_current(folder).count == good.count + 3
    assert rollback(folder).version == good.version


def test_what_was_taken_back_and_cannot_be_deleted_leaves_no_new_part_at_each_try(folder, monkeypatch):
    append(folder, random_codes(3), None, ["a", "b", "c"])
    taken_back, unlink = snapshot_path(folder), Path.unlink
    rollback(folder)
    before = sorted(folder.iterdir())

    def refuse(path, missing_ok=False):
        return fail(errno.EPERM) if path == taken_back else unlink(path, missing_ok)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "unlink", refuse)
        with pytest.raises(OSError, match="Operation not permitted"):
            append(folder, random_codes(1), None, ["x"])
    assert sorted(folder.iterdir()) == before


def test_a_pointer_that_does_not_move_keeps_the_ids_that_were_taken_back(folder, monkeypatch):
    append(folder, random_codes(3), None, ["a", "b", "c"])  # ids 140 to 142
    rollback(folder)
    with monkeypatch.context() as disk:
        disk.setattr(publishing, "write_atomically", lambda *_: fail(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            append(folder, random_codes(1), None, ["x"])
    assert append(folder, random_codes(1), None, ["x"]).ids[-1] >= 143


def test_an_id_does_not_come_back_because_a_header_could_not_be_read_for_a_moment(folder, monkeypatch):
    append(folder, random_codes(3), None, ["a", "b", "c"])  # ids 140 to 142
    taken_back, opened = snapshot_path(folder), header.open_regular
    rollback(folder)
    with monkeypatch.context() as disk:
        disk.setattr(header, "open_regular", lambda path: fail(errno.EMFILE) if path == taken_back else opened(path))
        with pytest.raises(OSError, match="Too many open files"):
            append(folder, random_codes(1), None, ["x"])
    assert append(folder, random_codes(1), None, ["x"]).ids[-1] == 143


def test_what_changes_while_it_is_written_does_not_serve(folder, monkeypatch):
    before, write = sorted(folder.iterdir()), publishing.write_part

    def other_codes(file, part, digest):
        write(file, dataclasses.replace(part, codes=part.codes ^ 1), digest)

    monkeypatch.setattr(publishing, "write_part", other_codes)
    with pytest.raises(InputError, match="what was written is not what was given"):
        append(folder, random_codes(3), None, ["a", "b", "c"])
    assert sorted(folder.iterdir()) == before
    assert open_current(folder).count == 40


def test_fault_18_a_pointer_that_cannot_be_moved_leaves_no_part(folder, monkeypatch):
    before = sorted(folder.iterdir())

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(publishing, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        append(folder, random_codes(3), None, ["a", "b", "c"])
    assert sorted(folder.iterdir()) == before


def test_a_reader_that_read_an_old_pointer_follows_to_the_newer_version(folder, monkeypatch):
    stale = [current_version(folder)]
    newest = current_version
    for seed in range(3):
        build(folder, random_codes(43, seed=seed), None, None, bits=16, fingerprint=F, overwrite=True)
    monkeypatch.setattr(gallery_folder, "current_version", lambda path: stale.pop() if stale else newest(path))
    assert open_current(folder).count == 43
    assert stale == []


def test_a_published_change_succeeds_though_a_part_that_nothing_needs_cannot_be_deleted(folder, monkeypatch):
    old = snapshot_path(folder)
    unlink = Path.unlink

    def refused(path, missing_ok=False):
        if path == old:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    for number in range(2):
        monkeypatch.setattr(Path, "unlink", refused)
        build(folder, random_codes(10, seed=number), None, None, bits=16, fingerprint=F, overwrite=True)
    assert (open_current(folder).count, old.exists()) == (10, True)
    monkeypatch.undo()
    build(folder, random_codes(10, seed=3), None, None, bits=16, fingerprint=F, overwrite=True)
    assert not old.exists()
