"""Each change of a gallery in peace: what it makes, what it keeps, what it refuses."""

import contextlib
import hashlib
import os

import numpy as np
import pytest
from gallery_files import F, random_codes, snapshot_path
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID, PAD_KEY
from dmsh_serving.errors import InputError
from dmsh_serving.gallery import changes
from dmsh_serving.gallery.changes import append, build, compact, merge, remove, remove_keys
from dmsh_serving.gallery.folder import current_version, open_current
from dmsh_serving.gallery.rollback import rollback
from dmsh_serving.gallery.snapshot import distinct_codes


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


def test_an_id_that_was_given_out_and_taken_back_does_not_come_back_after_a_merge(folder, tmp_path):
    append(folder, random_codes(3), None, ["a", "b", "c"])  # ids 140 to 142
    rollback(folder)
    merge([folder], tmp_path / "merged")
    assert append(tmp_path / "merged", random_codes(1), None, ["x"]).ids[-1] == 143


def test_distinct_codes_are_counted():
    assert distinct_codes(np.array([[1, 2, 3], [1, 2, 3], [3, 2, 1]], np.uint8)) == 2
    assert distinct_codes(np.empty((0, 3), np.uint8)) == 0
