import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID, PAD_KEY
from dmsh_serving.errors import InputError
from dmsh_serving.gallery import changes, header, part_file
from dmsh_serving.gallery import folder as gallery_folder
from dmsh_serving.gallery import publish as publishing
from dmsh_serving.gallery.changes import append, build, compact, merge, remove, remove_keys
from dmsh_serving.gallery.folder import current_version, open_current
from dmsh_serving.gallery.part import Part
from dmsh_serving.gallery.rollback import rollback
from dmsh_serving.gallery.snapshot import distinct_codes

F = "f" * 64


def random_codes(count, width=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A gallery of 40 codes of 16 bits, ids 100 to 139, with keys."""
    path = tmp_path / "gallery"
    build(path, random_codes(40), np.arange(100, 140), [f"é{i}.png" for i in range(40)], bits=16, fingerprint=F)
    return path


def snapshot_path(folder):
    return folder / f"gallery-{current_version(folder)}.safetensors"


def damaged(folder, change):
    """Replace the serving snapshot's bytes by change(bytes)."""
    path = snapshot_path(folder)
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


def with_header(change, fix_checksum=False):
    """Return a change of a snapshot's bytes that edits its JSON header."""

    def apply(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return apply


def publish_as_it_is(folder, part):
    """Make ``part`` the version that serves, checksummed and well named, whatever is wrong with it."""
    digest = part_file.digest_of(part)
    version = f"00000009-{digest[:8]}"
    with (folder / f"gallery-{version}.safetensors").open("wb") as file:
        part_file.write_part(file, part, digest)
    (folder / "CURRENT").write_text(version)


def test_what_was_built_is_what_opens(folder):
    snapshot = open_current(folder, fingerprint=F, bits=16)
    assert (snapshot.count, snapshot.bits, snapshot.fingerprint) == (40, 16, F)
    assert np.array_equal(snapshot.codes, random_codes(40))
    assert np.array_equal(snapshot.ids, np.arange(100, 140))
    assert snapshot.keys_of(np.array([[3, PAD_ID], [0, 39]])) == ["é3.png", PAD_KEY, "é0.png", "é39.png"]
    assert snapshot.version == current_version(folder)
    assert not snapshot.codes.flags.writeable


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=30), st.randoms())
@settings(max_examples=40, deadline=None)
def test_results_come_in_distance_then_id_order_however_the_ids_were_given(tmp_path_factory, ids, random):
    random.shuffle(ids)
    codes = random_codes(len(ids), 1) & 3
    path = tmp_path_factory.mktemp("g") / "gallery"
    snapshot = build(path, codes, np.array(ids, np.int64), [str(i) for i in ids], bits=8, fingerprint=F)
    query = np.array([[1]], np.uint8)
    found = snapshot.search(query, len(ids) + 2)
    distance = np.unpackbits(codes ^ query, axis=1).sum(axis=1).tolist()
    expected = sorted(zip(distance, ids, strict=True))
    assert found.ids[0].tolist() == [i for _, i in expected] + [PAD_ID] * 2
    assert found.distances[0].tolist() == [d for d, _ in expected] + [PAD_DISTANCE] * 2
    assert snapshot.keys_of(found.rows) == [str(i) for _, i in expected] + [PAD_KEY] * 2


def test_the_file_is_plain_safetensors_and_equal_content_gives_equal_bytes(folder, tmp_path):
    tensors = load_file(snapshot_path(folder))
    assert np.array_equal(tensors["codes"], random_codes(40))
    assert set(tensors) == {"codes", "key_offsets", "keys"}  # the ids are a range, which the metadata gives
    again = tmp_path / "again"
    build(again, random_codes(40), np.arange(100, 140), [f"é{i}.png" for i in range(40)], bits=16, fingerprint=F)
    assert snapshot_path(again).name == snapshot_path(folder).name
    assert snapshot_path(again).read_bytes() == snapshot_path(folder).read_bytes()


def test_an_empty_gallery_and_one_without_keys_work(tmp_path):
    empty = build(tmp_path / "empty", np.empty((0, 2), np.uint8), None, [], bits=16, fingerprint=F)
    assert empty.search(random_codes(1), 2).ids.tolist() == [[PAD_ID, PAD_ID]]
    bare = build(tmp_path / "bare", random_codes(3), None, None, bits=16, fingerprint=F)
    assert bare.ids.tolist() == [0, 1, 2]
    assert bare.keys_of(np.array([0, 2])) == [PAD_KEY, PAD_KEY]


def test_append_continues_the_ids_and_keeps_what_was_there(folder):
    before = open_current(folder)
    after = append(folder, random_codes(2, seed=1), None, ["a", "b"], bits=16, fingerprint=F)
    assert after.ids[-3:].tolist() == [139, 140, 141]
    assert np.array_equal(after.codes[:40], before.codes)
    assert list(after.contents().keys)[39:] == ["é39.png", "a", "b"]
    assert after.version > before.version


def test_ids_appended_below_the_others_are_sorted_in(folder):
    after = append(folder, random_codes(1, seed=1), np.array([7]), ["seven"])
    assert after.ids[0] == 7
    assert list(after.contents().keys)[:2] == ["seven", "é0.png"]


def test_after_the_largest_id_there_is_only_codes_with_ids_of_their_own_are_appended(tmp_path):
    folder = tmp_path / "g"
    build(folder, random_codes(2), np.array([7, 2**63 - 1]), None, bits=16, fingerprint=F)
    append(folder, random_codes(0), None, None)
    with pytest.raises(InputError, match="no 1 ids are left, give your own"):
        append(folder, random_codes(1), None, None)
    append(folder, random_codes(1), np.array([2**63 - 2]), None)
    assert open_current(folder).ids.tolist() == [7, 2**63 - 2, 2**63 - 1]


def test_remove_drops_exactly_the_ids_asked_for(folder):
    after = remove(folder, np.array([100, 120]))
    assert after.ids.tolist() == [i for i in range(100, 140) if i not in (100, 120)]
    assert after.contents().keys[0] == "é1.png"
    with pytest.raises(InputError, match="has no id 100"):
        remove(folder, np.array([100, 101]))
    assert 101 in open_current(folder).ids


def test_keys_are_looked_up_only_when_no_other_writer_is_at_work(folder, monkeypatch):
    @contextlib.contextmanager
    def rebuilt_before(place, patience=0.0):
        monkeypatch.undo()
        build(folder, random_codes(2), None, ["x", "é0.png"], bits=16, fingerprint=F, overwrite=True)
        with changes.writing(place, patience):
            yield

    monkeypatch.setattr(changes, "writing", rebuilt_before)
    after, gone = remove_keys(folder, ["é0.png"])
    assert (list(after.contents().keys), gone.tolist()) == (["x"], [1])  # it was 100


def test_fault_19_duplicate_ids_are_refused_when_built_and_when_appended(folder, tmp_path):
    with pytest.raises(InputError, match="id 5 given more than once"):
        build(tmp_path / "new", random_codes(3), np.array([5, 1, 5]), None, bits=16, fingerprint=F)
    assert not (tmp_path / "new").exists()
    version = current_version(folder)
    with pytest.raises(InputError, match="already has id 139"):
        append(folder, random_codes(1), np.array([139]), ["x"])
    assert current_version(folder) == version


@pytest.mark.parametrize(
    ("codes", "ids", "keys", "message"),
    [
        (random_codes(2), np.array([-1, 2]), None, "negative"),
        (random_codes(2), np.array([1]), None, "ids must be integers"),
        (random_codes(2), np.array([1.0, 2.0]), None, "ids must be integers"),
        (random_codes(2), np.array([1, 2**63], np.uint64), None, "too large"),
        (random_codes(2), None, ["one"], "2 codes but 1 keys"),
        (random_codes(2), None, ["a", "\udcff"], "not valid text"),
        (random_codes(2, 3), None, None, "must be uint8"),
    ],
)
def test_bad_codes_ids_and_keys_are_refused_before_anything_is_written(tmp_path, codes, ids, keys, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path / "g", codes, ids, keys, bits=16, fingerprint=F)
    assert not (tmp_path / "g").exists()


def test_ids_without_a_sign_are_taken_up_to_the_largest(tmp_path):
    build(tmp_path / "g", random_codes(2), np.array([7, 2**63 - 1], np.uint64), None, bits=16, fingerprint=F)
    assert open_current(tmp_path / "g").ids.tolist() == [7, 2**63 - 1]


def test_an_existing_gallery_is_replaced_only_when_asked(folder):
    with pytest.raises(InputError, match="already holds a gallery"):
        build(folder, random_codes(1), None, None, bits=16, fingerprint=F)
    old = current_version(folder)
    new = build(folder, random_codes(1), None, None, bits=16, fingerprint=F, overwrite=True)
    assert new.version > old
    assert open_current(folder).count == 1


def test_keys_are_given_to_all_codes_or_to_none(folder):
    with pytest.raises(InputError, match="append with keys"):
        append(folder, random_codes(1), None, None)


def test_fault_13_another_fingerprint_or_bit_count_is_refused_and_both_are_named(folder):
    other = "0" * 64
    with pytest.raises(InputError, match=rf"16 bits, not 64.*{F}, not {other}"):
        open_current(folder, fingerprint=other, bits=64)
    with pytest.raises(InputError, match=f"{F}, not {other}"):
        append(folder, random_codes(1), None, ["x"], fingerprint=other)


def test_fault_11_a_flipped_bit_is_refused_wherever_it_is(folder):
    whole = snapshot_path(folder).read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(0, header_end, 7), *range(header_end, len(whole), 13), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        damaged(folder, lambda _, flipped=flipped: bytes(flipped))
        with pytest.raises(InputError):
            open_current(folder)
    damaged(folder, lambda _: whole)
    assert open_current(folder).count == 40


def test_fault_11_a_flipped_code_bit_is_refused_by_its_checksum(folder):
    def flip(data):
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        place = start + header["codes"]["data_offsets"][0]
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    damaged(folder, flip)
    with pytest.raises(InputError, match="checksum does not match"):
        open_current(folder)


def test_fault_10_a_file_cut_anywhere_is_refused(folder):
    whole = snapshot_path(folder).read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 17), len(whole) - 1]:
        damaged(folder, lambda _, length=length: whole[:length])
        with pytest.raises(InputError, match="cannot be used as a gallery"):
            open_current(folder)
    damaged(folder, lambda _: whole + b"\0")
    with pytest.raises(InputError, match="truncated or damaged"):
        open_current(folder)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(100), b"\xff" * 200, (2).to_bytes(8, "little") + b"{}", bytes(64)]
)
def test_fault_10_a_foreign_file_is_refused(folder, data):
    damaged(folder, lambda _: data)
    with pytest.raises(InputError, match="cannot be used as a gallery"):
        open_current(folder)


def set_entry(name, **values):
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    "change",
    [
        set_entry("codes", shape=[2**62, 2**62]),
        set_entry("codes", shape=[2**63, 2]),
        set_entry("codes", shape=[0, 10**30], data_offsets=[0, 0]),
        set_entry("key_offsets", shape=[2**61], data_offsets=[0, 2**64]),
        set_entry("codes", shape=[-40, -2]),
        set_entry("codes", shape=[40, 2.0]),
        set_entry("codes", shape=[True, 80]),
        set_entry("codes", shape=[20, 4]),
        set_entry("codes", shape=[80]),
        set_entry("codes", dtype="F32"),
        set_entry("codes", data_offsets=[0, 80]),
        set_entry("key_offsets", data_offsets="no"),
        set_entry("key_offsets", shape=None),
        set_entry("__metadata__", bits="2000"),
        set_entry("__metadata__", bits="-1"),
        set_entry("__metadata__", bits="²"),
        set_entry("__metadata__", bits="15"),
        set_entry("__metadata__", count="41"),
        set_entry("__metadata__", fingerprint=None),
        set_entry("__metadata__", fingerprint="e" * 64),
        set_entry("__metadata__", format="other"),
        set_entry("__metadata__", format_version="1"),
        set_entry("__metadata__", first_id="-1"),
        set_entry("__metadata__", first_id="101"),
        set_entry("__metadata__", distinct="many"),
        set_entry("__metadata__", base="../etc/passwd"),
        set_entry("__metadata__", base="00000000-aaaaaaaa " + "a" * 64),
        lambda header: header["codes"].update(data_offsets=[at + 1 for at in header["codes"]["data_offsets"]]),
        lambda header: header.pop("codes"),
        lambda header: header.pop("key_offsets"),
        lambda header: header.pop("keys"),
        lambda header: header.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    ],
)
def test_fault_12_sizes_that_overflow_or_disagree_are_refused_before_allocation(folder, change):
    damaged(folder, with_header(change))
    with pytest.raises(InputError):
        open_current(folder)


@pytest.mark.parametrize("ids", [[1, 1, 2], [2, 1, 3], [-1, 0, 1]])
def test_a_checksummed_file_whose_ids_are_out_of_order_is_refused(folder, ids):
    publish_as_it_is(folder, Part(16, F, random_codes(3), np.array(ids, np.int64)))
    with pytest.raises(InputError, match=r"ascending|negative"):
        open_current(folder)


def test_a_checksummed_file_whose_ids_begin_beyond_the_largest_is_refused_even_when_empty(folder):
    publish_as_it_is(folder, Part(16, F, np.empty((0, 2), np.uint8), first_id=2**63))
    with pytest.raises(InputError, match="not all from 0"):
        open_current(folder)


@pytest.mark.parametrize("text", ["", "00000001", "../../etc/passwd", "x" * 10_000, "\xff\xfe"])
def test_a_damaged_pointer_is_refused(folder, text):
    (folder / "CURRENT").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        open_current(folder)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"../../etc/passwd", b"00000009-aaaaaaaa\n"])
def test_a_damaged_pointer_is_mended_by_building_anew(folder, text):
    (folder / "CURRENT").write_bytes(text)
    with pytest.raises(InputError, match="already holds a gallery"):
        build(folder, random_codes(5), None, None, bits=16, fingerprint=F)
    build(folder, random_codes(5), None, None, bits=16, fingerprint=F, overwrite=True)
    assert open_current(folder).count == 5
    assert current_version(folder).startswith("00000002-")


def test_a_pointer_that_is_a_pipe_is_refused_and_not_waited_for(folder):
    (folder / "CURRENT").unlink()
    os.mkfifo(folder / "CURRENT")
    with pytest.raises(OSError, match="not a regular file"):
        current_version(folder)


def test_a_folder_that_is_no_gallery_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="is not a gallery"):
            open_current(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be made a gallery"):
        build(tmp_path / "file", random_codes(1), None, None, bits=16, fingerprint=F)


def test_a_pointer_to_a_missing_snapshot_is_refused(folder):
    snapshot_path(folder).unlink()
    with pytest.raises(InputError, match="is missing"):
        open_current(folder)


def test_fault_14_a_mapped_snapshot_outlives_the_versions_that_replace_it(folder):
    reader = open_current(folder)
    digest = hashlib.sha256(reader.codes.tobytes()).hexdigest()
    assert snapshot_path(folder).stat().st_mode & 0o222 == 0  # no ordinary program can write into it
    for seed in range(4):
        build(folder, random_codes(5000, seed=seed), None, None, bits=16, fingerprint=F, overwrite=True)
    assert not reader.path.exists()
    assert hashlib.sha256(reader.codes.tobytes()).hexdigest() == digest
    assert reader.search(reader.codes[:1], 1).distances.tolist() == [[0]]


def test_a_snapshot_is_readable_by_those_the_umask_allows(folder):
    before = os.umask(0o077)
    try:
        remove(folder, np.array([100]))
    finally:
        os.umask(before)
    assert snapshot_path(folder).stat().st_mode & 0o777 == 0o400


def test_the_last_two_versions_are_kept_with_the_parts_they_stand_on(folder):
    parts = [[name.version for name in append(folder, random_codes(1), None, ["x"]).names] for _ in range(3)]
    kept = {path.name for path in folder.glob("gallery-*")}
    assert kept == {f"gallery-{version}.safetensors" for version in {*parts[-1], *parts[-2]}}
    assert len(kept) == 3  # the first build, and a part on top of it for each of the two versions
    compact(folder)
    compact(folder)
    assert len(list(folder.glob("gallery-*"))) == 2


def test_a_rebuilt_gallery_never_repeats_a_version_with_other_content(tmp_path):
    first = build(tmp_path / "a", random_codes(3, seed=1), None, None, bits=16, fingerprint=F)
    second = build(tmp_path / "b", random_codes(3, seed=2), None, None, bits=16, fingerprint=F)
    assert first.version != second.version


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


def test_an_id_that_was_given_out_and_taken_back_does_not_come_back_after_a_merge(folder, tmp_path):
    append(folder, random_codes(3), None, ["a", "b", "c"])  # ids 140 to 142
    rollback(folder)
    merge([folder], tmp_path / "merged")
    assert append(tmp_path / "merged", random_codes(1), None, ["x"]).ids[-1] == 143


def test_a_reader_that_read_an_old_pointer_follows_to_the_newer_version(folder, monkeypatch):
    stale = [current_version(folder)]
    newest = current_version
    for seed in range(3):
        build(folder, random_codes(43, seed=seed), None, None, bits=16, fingerprint=F, overwrite=True)
    monkeypatch.setattr(gallery_folder, "current_version", lambda path: stale.pop() if stale else newest(path))
    assert open_current(folder).count == 43
    assert stale == []


def test_distinct_codes_are_counted():
    assert distinct_codes(np.array([[1, 2, 3], [1, 2, 3], [3, 2, 1]], np.uint8)) == 2
    assert distinct_codes(np.empty((0, 3), np.uint8)) == 0


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
