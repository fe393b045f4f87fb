"""Versions made of parts: what a change writes, and that no answer tells how a gallery came about."""

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID, PAD_KEY
from dmsh_serving.errors import InputError
from dmsh_serving.gallery import folder as gallery_folder
from dmsh_serving.gallery import header, part_file
from dmsh_serving.gallery import merging as gallery_merging
from dmsh_serving.gallery.changes import append, build, compact, merge, remove, remove_keys
from dmsh_serving.gallery.folder import open_current
from dmsh_serving.gallery.part import Part, PartName
from dmsh_serving.gallery.verify import verify
from dmsh_serving.hamming.layout import LayoutChoice
from dmsh_serving.hamming.oracle import search_oracle

F = "f" * 64
SPACE = {"bits": 16, "fingerprint": F}


def random_codes(count, width=2, seed=0, values=256):
    return np.random.default_rng(seed).integers(0, values, (count, width), dtype=np.uint8)


class Model:
    """What a gallery must hold after the same changes: {id: (code, key)}."""

    def __init__(self):
        self.held = {}

    def add(self, ids, codes, keys):
        self.held |= {i: (code, key) for i, code, key in zip(ids, codes.tolist(), keys, strict=True)}

    def check(self, snapshot, queries):
        ids = np.array(sorted(self.held), np.int64)
        codes = np.array([self.held[i][0] for i in ids.tolist()], np.uint8).reshape(-1, 2)
        contents = snapshot.contents()
        assert snapshot.count == len(ids)
        np.testing.assert_array_equal(contents.ids, ids)
        np.testing.assert_array_equal(contents.codes, codes)
        for step, allowed in ((1, None), (3, np.append(ids[::3], 9999)), (90, np.append(ids[90::-90], 9999)[::-1])):
            chosen = np.arange(len(ids)) if step == 1 else np.flatnonzero(np.isin(ids, allowed))
            found = snapshot.search(queries, 7, allowed=allowed)
            distances, rows = search_oracle(queries, codes[chosen], 7)
            expected = np.append(ids[chosen], PAD_ID)[rows]
            np.testing.assert_array_equal(found.ids, expected)
            np.testing.assert_array_equal(found.distances, distances)
            keys = [PAD_KEY if i == PAD_ID else self.held[i][1] for i in expected.ravel().tolist()]
            assert snapshot.keys_of(found.rows) == keys


@pytest.mark.parametrize("layout", ["plain", "clustered"])
@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_contents_and_answers_are_those_of_the_same_codes_built_at_once(
    tmp_path, seed, layout, monkeypatch
):
    choice = LayoutChoice(layout, "told so", 16, None)  # left alone, it takes far more codes to be clustered
    monkeypatch.setattr(gallery_merging, "choose_layout", lambda _: choice)
    random, model, folder = np.random.default_rng(seed), Model(), tmp_path / "g"
    snapshot = build(folder, np.empty((0, 2), np.uint8), None, [], **SPACE)
    most_parts = 0
    for step in range(30):
        change = random.integers(0, 10)
        if change < 6:
            codes = random.integers(0, 4, (int(random.integers(0, 30)), 2), dtype=np.uint8)  # 16 codes: many equal
            ids = None
            used = np.arange(snapshot.next_id, snapshot.next_id + len(codes))
            if change >= 3:
                used = ids = random.permutation(np.setdiff1d(np.arange(500), list(model.held)))[: len(codes)]
            keys = [f"ké{step}-{i}" for i in range(len(codes))]
            snapshot = append(folder, codes, ids, keys)
            model.add(used.tolist(), codes, keys)
        elif change < 9 and model.held:
            gone = random.permutation(list(model.held))[: int(random.integers(1, 9))]
            snapshot = remove(folder, gone)
            model.held = {i: held for i, held in model.held.items() if i not in gone}
        else:
            snapshot = compact(folder)
            assert len(snapshot.parts) == 1
        most_parts = max(most_parts, len(snapshot.parts))
        model.check(snapshot, random.integers(0, 4, (3, 2), dtype=np.uint8))
    assert most_parts > 2


@pytest.fixture
def large(tmp_path):
    """200,000 codes of 64 bits."""
    build(tmp_path / "g", random_codes(200_000, 8), None, None, bits=64, fingerprint=F)
    return tmp_path / "g"


def bytes_of(folder):
    return {path: path.stat().st_size for path in folder.glob("gallery-*")}


def test_an_append_and_a_removal_write_as_much_as_they_change(large):
    (first,) = bytes_of(large).items()
    appended = append(large, random_codes(1000, 8, seed=1), None, None)
    assert appended.path.stat().st_size < 1000 * 8 + 1200
    removed = remove(large, np.arange(0, 200_000, 500))
    assert removed.path.stat().st_size < 400 * 8 + 1200
    assert first in bytes_of(large).items()
    assert (removed.count, len(removed.parts)) == (200_600, 3)
    assert open_current(large).search(random_codes(1, 8), 1).ids[0, 0] != 0  # the nearest was removed


def test_many_small_changes_make_few_parts_and_write_little(large):
    written = 0
    for number in range(40):
        before = set(bytes_of(large))
        snapshot = append(large, random_codes(100, 8, seed=number), None, None)
        written += sum(size for path, size in bytes_of(large).items() if path not in before)
    assert snapshot.count == 204_000
    assert len(snapshot.parts) <= 7
    assert written < 40 * 1000 + 8 * 4000 * 6  # headers, and every code a few times


def test_removing_a_quarter_writes_the_gallery_anew_without_it(large):
    for start in range(0, 60_000, 10_000):
        snapshot = remove(large, np.arange(start, start + 10_000))
    assert snapshot.count == 140_000
    assert sum(part.count for part in snapshot.parts) < 160_000


def test_parts_that_are_open_already_are_shared(large):
    before = open_current(large)
    append(large, random_codes(10, 8), None, None)
    after = open_current(large, known=before)
    assert after.parts[0] is before.parts[0]
    assert after.count == 200_010


def test_ids_that_are_a_range_take_no_room(tmp_path):
    snapshot = build(tmp_path / "g", random_codes(1000), np.arange(5, 1005)[::-1], None, **SPACE)
    assert snapshot.path.stat().st_size < 2000 + 800
    assert snapshot.ids.tolist() == list(range(5, 1005))
    assert snapshot.rows_of(np.array([4, 5, 1004, 1005])).tolist() == [PAD_ID, 0, 999, PAD_ID]


@pytest.mark.parametrize("largest_id", [5000, 10**15])
def test_codes_that_cluster_are_stored_once_and_say_why(tmp_path, monkeypatch, largest_id):
    for layout in ("plain", "clustered"):
        monkeypatch.setattr(
            gallery_merging, "choose_layout", lambda _, name=layout: LayoutChoice(name, "told so", 16, None)
        )
        codes, ids = (
            random_codes(3000, values=4),
            np.random.default_rng(1).permutation(5000)[:3000] * (largest_id // 5000),
        )
        snapshot = build(tmp_path / layout, codes, ids, [str(i) for i in ids], **SPACE)
        assert (snapshot.parts[0].layout, snapshot.parts[0].layout_reason) == (layout, "told so")
        assert len(snapshot.parts[0].codes) == (16 if layout == "clustered" else 3000)
        found = snapshot.search(codes[:4], 500)
        order = np.argsort(ids)
        distances, rows = search_oracle(codes[:4], codes[order], 500)
        np.testing.assert_array_equal(found.distances, distances)
        np.testing.assert_array_equal(found.ids, ids[order][rows])
        assert snapshot.keys_of(found.rows) == [str(i) for i in found.ids.ravel()]
        rows = snapshot.rows_of(snapshot.ids)
        np.testing.assert_array_equal(snapshot.parts[0].ids_of(rows), snapshot.ids)
        assert (snapshot.rows_of(np.setdiff1d(np.arange(5001) * (largest_id // 5000), ids)) == PAD_ID).all()


def test_a_radius_pads_what_is_farther(tmp_path):
    build(tmp_path / "g", np.array([[0, 0], [0, 1], [0, 3], [0, 7]], np.uint8), None, None, **SPACE)
    snapshot = append(tmp_path / "g", np.array([[0, 2]], np.uint8), None, None)
    found = snapshot.search(np.zeros((1, 2), np.uint8), 5, radius=1)
    assert found.ids.tolist() == [[0, 1, 4, PAD_ID, PAD_ID]]
    assert found.distances.tolist() == [[0, 1, 1, PAD_DISTANCE, PAD_DISTANCE]]
    with pytest.raises(InputError, match="radius = -1"):
        snapshot.search(np.zeros((1, 2), np.uint8), 5, radius=-1)


@pytest.mark.parametrize("count", [3, 3000, 3500, 100_000])
def test_few_and_many_allowed_ids_are_searched_alike(large, count):
    append(large, random_codes(5000, 8, seed=1), None, None)
    snapshot = remove(large, np.arange(0, 60))
    allowed = np.random.default_rng(count).integers(0, 205_000, count)  # some twice, some removed
    found = snapshot.search(random_codes(2, 8, seed=2), 20, allowed=allowed)
    contents = snapshot.contents()
    kept = np.isin(contents.ids, allowed)
    distances, rows = search_oracle(random_codes(2, 8, seed=2), contents.codes[kept], 20)
    np.testing.assert_array_equal(found.ids, np.append(contents.ids[kept], PAD_ID)[rows])
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(snapshot.codes_of(found.rows)[found.ids == PAD_ID], 0)


@pytest.mark.parametrize("count", [3, 200_000])
def test_a_mask_is_none_of_the_ids_that_its_values_would_be(large, count):
    mask = np.ones(count, np.bool_)
    with pytest.raises(InputError, match=rf"ids must be integers \[M\], got bool \[{count}\]"):
        open_current(large).search(random_codes(1, 8), 1, allowed=mask)
    with pytest.raises(InputError, match="ids must be integers"):
        remove(large, mask)


def test_codes_of_another_width_are_neither_stored_nor_searched_for(large):
    wide = random_codes(3, 9)
    for refused in (
        lambda: append(large, wide, None, None),
        lambda: open_current(large).search(wide, 1),
        lambda: open_current(large).search(wide, 1, allowed=np.arange(5)),
    ):
        with pytest.raises(InputError, match=r"codes of 64 bits must be uint8 \[N, 8\], got uint8 \[3, 9\]"):
            refused()


def test_keys_that_are_not_there_remove_nothing(tmp_path):
    build(tmp_path / "g", random_codes(3), None, list("abc"), **SPACE)
    with pytest.raises(InputError, match=r"has no .*x.*: see gallery list"):
        remove_keys(tmp_path / "g", ["a", "x"])
    assert open_current(tmp_path / "g").count == 3


def test_the_first_code_of_a_gallery_that_was_built_empty_has_id_0(tmp_path):
    empty = build(tmp_path / "g", random_codes(0), None, None, **SPACE)
    assert (empty.next_id, empty.parts[0].last_id) == (0, -1)
    assert append(tmp_path / "g", random_codes(1), None, None).contents().ids.tolist() == [0]


def test_an_empty_filter_finds_nothing(large):
    found = open_current(large).search(random_codes(2, 8), 3, allowed=np.empty(0, np.int64))
    assert (found.ids == PAD_ID).all()


def test_a_gallery_emptied_by_removal_takes_codes_again_with_or_without_keys(tmp_path):
    build(tmp_path / "g", random_codes(5), None, list("abcde"), **SPACE)
    append(tmp_path / "g", random_codes(1), None, ["f"])
    empty = remove(tmp_path / "g", np.arange(6))
    assert (empty.count, empty.next_id, empty.search(random_codes(1), 2).ids.tolist()) == (0, 6, [[PAD_ID, PAD_ID]])
    assert compact(tmp_path / "g").count == 0
    after = append(tmp_path / "g", random_codes(2), None, None)
    assert (after.ids.tolist(), after.has_keys) == ([6, 7], False)


def test_codes_in_any_memory_order_are_taken_and_searched(tmp_path):
    plain = random_codes(50)
    reversed_twice = np.ascontiguousarray(plain[:, ::-1])[:, ::-1]
    frozen = plain.copy()
    frozen.flags.writeable = False
    spread = np.repeat(plain, 2, axis=0)[::2]
    expected = None
    for number, codes in enumerate((plain, np.asfortranarray(plain), reversed_twice, frozen, spread)):
        folder = tmp_path / str(number)
        build(folder, codes, None, None, **SPACE)
        snapshot = append(folder, codes, np.arange(100, 150)[::-1], None)
        found = snapshot.search(codes[:5], 9)
        expected = expected or found
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.distances, expected.distances)


def test_readers_always_find_a_whole_version_while_a_writer_is_at_work(tmp_path):
    folder, errors, seen = tmp_path / "g", [], set()
    build(folder, random_codes(300), None, None, **SPACE)
    stop = threading.Event()

    def read():
        known = None
        while not stop.is_set():
            try:
                known = open_current(folder, known=known)
                assert open_current(folder).count >= 300
                seen.add(known.version)
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(40):
        compact(folder) if number % 5 == 4 else append(folder, random_codes(20), None, None)
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert len(seen) > 5


def test_galleries_are_merged_and_shared_ids_refused_unless_renumbered(tmp_path):
    build(tmp_path / "a", random_codes(3), np.array([1, 5, 9]), ["a1", "a5", "a9"], **SPACE)
    build(tmp_path / "b", random_codes(2, seed=1), np.array([5, 6]), ["b5", "b6"], **SPACE)
    with pytest.raises(InputError, match=r"share ids: id 5 given more than once.*--renumber"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c", renumber=True)
    assert merged.ids.tolist() == [0, 1, 2, 3, 4]
    assert list(merged.contents().keys) == ["a1", "a5", "a9", "b5", "b6"]
    remove(tmp_path / "b", np.array([5]))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "d").ids.tolist() == [1, 5, 6, 9]
    build(tmp_path / "bare", random_codes(1), None, None, **SPACE)
    build(tmp_path / "other", random_codes(1), None, ["x"], bits=16, fingerprint="e" * 64)
    with pytest.raises(InputError, match="some have none"):
        merge([tmp_path / "a", tmp_path / "bare"], tmp_path / "e")
    with pytest.raises(InputError, match="belongs to another model"):
        merge([tmp_path / "a", tmp_path / "other"], tmp_path / "e")
    with pytest.raises(InputError, match="is one of the galleries to merge"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "d" / ".." / "a", overwrite=True)
    with pytest.raises(InputError, match="nothing to merge"):
        merge([], tmp_path / "e")


def written(folder, part, number=9):
    """Make ``part`` the version that serves, as it is; return its name."""
    part = replace(part, next_id=part.next_id or max(5, part.last_id + 1))
    digest = part_file.digest_of(part)
    version = f"{number:08d}-{digest[:8]}"
    with gallery_folder.part_path(folder, version).open("wb") as file:
        part_file.write_part(file, part, digest)
    (folder / "CURRENT").write_text(version)
    return PartName(version, digest)


def test_parts_that_do_not_fit_the_ones_below_are_refused(tmp_path):
    folder = tmp_path / "g"
    base = build(folder, random_codes(5), None, None, **SPACE).names[0]
    codes, rows, starts = random_codes(1), np.array([2]), np.arange(3, dtype=np.int32)
    for part, message in (
        (Part(16, F, codes, first_id=4, base=base), "the same id"),
        (Part(16, "e" * 64, codes, first_id=9, base=base), "different models"),
        (Part(16, F, codes, first_id=9, removed=np.array([5]), base=base), "rows that it does not have"),
        (Part(16, F, codes, first_id=9, removed=np.array([2, 2]), base=base), "not strictly ascending"),
        (Part(16, F, codes, first_id=9, removed=np.array([-1]), base=base), "not strictly ascending"),
        (Part(16, F, codes, first_id=9, removed=rows), "there is none"),
        (Part(16, F, codes, first_id=9, base=base, next_id=9), "gives 9 as its next id, and has id 9"),
        (Part(16, F, codes, first_id=9, base=base, next_id=2**63 + 1), "as its next id, and has id 9"),
        (Part(16, F, codes[:0], base=base, next_id=4), "gives 4 as its next id, a part below 5"),
        (Part(16, F, codes[[0, 0]], first_id=2**63 - 1, base=base), "not all from 0"),
        (Part(16, F, codes, np.array([7, 8]), base=base), "1 codes but ids of shape"),
        (Part(16, F, codes, first_id=9, base=PartName(base.version, "a" * 64)), "over other content"),
        (Part(16, F, codes, np.array([3, 4]), starts=starts[:2], base=base), "do not divide 2 ids"),
        (Part(16, F, codes, np.array([8, 8]), starts=starts[::2]), "not strictly ascending"),
        (Part(16, F, np.array([[2, 0], [1, 0]], np.uint8), np.array([8, 9]), starts=starts), "ascending order"),
    ):  # fmt: skip
        written(folder, part)
        with pytest.raises(InputError, match=message):
            open_current(folder)
    first = written(folder, Part(16, F, codes, first_id=9, removed=rows, base=base))
    assert open_current(folder).ids.tolist() == [0, 1, 3, 4, 9]
    written(folder, Part(16, F, codes, first_id=10, removed=rows, base=first), 10)
    with pytest.raises(InputError, match="removes a row twice"):
        open_current(folder)
    gallery_folder.part_path(folder, base.version).unlink()
    with pytest.raises(InputError, match=f"{base.version}.* is missing"):
        open_current(folder)


def test_ids_that_would_begin_below_0_are_refused():
    with pytest.raises(InputError, match="1 ids from -1 on are not all from 0"):
        Part(16, F, random_codes(1), first_id=-1).check("here")


def test_verify_finds_nothing_wrong_with_a_sound_gallery(tmp_path):
    build(tmp_path / "g", np.arange(100, dtype=np.uint8).reshape(50, 2), None, None, bits=16, fingerprint=F)
    assert verify(tmp_path / "g").sound
    assert verify(tmp_path / "g").current is None


def test_verify_finds_an_id_that_two_different_codes_of_a_clustered_part_have(tmp_path):
    codes = np.array([[1, 0], [2, 0]], np.uint8)
    (tmp_path / "g").mkdir()
    for ids in ([3, 4], [3, 3]):
        written(tmp_path / "g", Part(16, F, codes, np.array(ids), starts=np.arange(3, dtype=np.int32)))
        found = verify(tmp_path / "g")
        assert found.sound == (ids == [3, 4])
    assert [problem for _, problem in found.files].count("an id is there more than once") == 1
    assert found.current == "1 ids are there more than once"


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31, 2**63 - 1])
def test_a_clustered_file_has_the_narrowest_numbers(tmp_path, monkeypatch, largest):
    choice = LayoutChoice("clustered", "told so", 16, None)
    monkeypatch.setattr(gallery_merging, "choose_layout", lambda _: choice)
    codes = random_codes(3001, values=4)
    ids = largest - 1 - np.random.default_rng(2).permutation(9000)[:3001]
    ids[5] = largest
    snapshot = build(tmp_path / "g", codes, ids, [f"key {i}" for i in ids], **SPACE)
    (part,) = snapshot.parts
    narrow = largest < 2**31
    assert (part.starts.dtype, part.ids.dtype) == (np.int32, np.int32 if narrow else np.int64)
    keys = 3002 * 8 + sum(len(f"key {i}") for i in ids)
    assert snapshot.path.stat().st_size < 16 * 2 + 17 * 4 + 3001 * (4 if narrow else 8) + keys + 1200
    order = np.argsort(ids)
    queries = random_codes(3, values=4, seed=3)
    distances, rows = search_oracle(queries, codes[order], 40)
    found = snapshot.search(queries, 40)
    np.testing.assert_array_equal(found.ids, ids[order][rows])
    np.testing.assert_array_equal(found.distances, distances)
    assert found.ids.dtype == np.int64
    assert snapshot.keys_of(found.rows[0, :5]) == [f"key {i}" for i in found.ids[0, :5]]
    np.testing.assert_array_equal(snapshot.codes_of(snapshot.rows_of(ids)), codes)
    asked = np.array([largest - 2**32 if largest > 2**32 else largest + 2**32, 0, largest])  # as int32, some alike
    assert (snapshot.rows_of(asked) == PAD_ID).tolist() == [True, True, False]
    added = append(tmp_path / "g", codes[:1], np.array([17]), ["seventeen"])
    assert 17 in added.search(codes[:1], 3000).ids
    assert verify(tmp_path / "g").sound


def test_a_gallery_of_an_older_format_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "FORMAT_VERSION", "1")
    build(tmp_path / "g", random_codes(5), None, None, **SPACE)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format version 1, this tool reads 3: build the gallery anew"):
        open_current(tmp_path / "g")
    assert build(tmp_path / "g", random_codes(4), None, None, overwrite=True, **SPACE).count == 4


def test_a_chain_without_end_is_refused(tmp_path, monkeypatch):
    build(tmp_path / "g", random_codes(50), None, None, **SPACE)
    append(tmp_path / "g", random_codes(10), None, None)
    append(tmp_path / "g", random_codes(1), None, None)
    monkeypatch.setattr(gallery_folder, "MAX_PARTS", 2)
    with pytest.raises(InputError, match="over 2 parts"):
        open_current(tmp_path / "g")


def test_a_name_that_is_not_its_contents_is_refused(tmp_path):
    path = build(tmp_path / "g", random_codes(5), None, None, **SPACE).path
    path.rename(path.with_name("gallery-00000009-00000000.safetensors"))
    (tmp_path / "g" / "CURRENT").write_text("00000009-00000000\n")
    with pytest.raises(InputError, match="its name does not fit its content"):
        open_current(tmp_path / "g")


@pytest.mark.parametrize(
    ("offsets", "text"), [([0, 1, 2], b"\xff\xff"), ([0, 1, 2], "é".encode()), ([0, 2, 2], b"\xc3a")]
)
def test_keys_that_are_not_text_are_refused_when_opened(tmp_path, offsets, text):
    from dmsh_serving.gallery.keys import Keys

    (tmp_path / "g").mkdir()
    keys = Keys(np.array(offsets), np.frombuffer(text, np.uint8))
    written(tmp_path / "g", Part(16, F, random_codes(2), keys=keys))
    with pytest.raises(InputError, match="not valid text"):
        open_current(tmp_path / "g")


OPENING = """
import sys, time
from pathlib import Path
from dmsh_serving.gallery import open_current

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024

before, start = resident(), time.perf_counter()
snapshot = open_current(Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(seconds, resident() - before, snapshot.count)
"""


def test_ten_million_codes_are_checked_and_opened_at_once_in_little_more_than_their_size(tmp_path, monkeypatch):
    plain = LayoutChoice("plain", "told so: to measure takes longer than all else here", 0, None)
    monkeypatch.setattr(gallery_merging, "choose_layout", lambda _: plain)
    codes = np.random.default_rng(0).integers(0, 2**64, 10_000_000, dtype=np.uint64).view(np.uint8).reshape(-1, 8)
    build(tmp_path / "g", codes, None, None, bits=64, fingerprint=F)
    size = codes.nbytes
    del codes
    runs = [
        subprocess.run([sys.executable, "-c", OPENING, tmp_path / "g"], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, memory = np.min([list(map(float, run.stdout.split()[:2])) for run in runs], axis=0)
    print(f"opened in {seconds:.3f} s, at {memory / size:.2f} times the codes' size")
    assert memory < 1.2 * size
    assert seconds < 1  # 0.1 s on an idle machine with SHA instructions; far below reading it code by code
