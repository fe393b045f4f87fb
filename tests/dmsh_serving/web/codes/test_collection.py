"""Images are found by id and by key; a version stays open while its readers scroll."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import InputError
from dmsh_serving.web.codes import collection
from dmsh_serving.web.codes.collection import GalleryFolder, words_of

SPACE = {"bits": 64, "fingerprint": "ab" * 32}


def test_words_hold_the_bytes_and_zeros():
    codes = uniform_codes(9, 100, 0)
    words = words_of(codes)
    assert words.shape == (9, 2)
    assert words.tobytes() == np.pad(codes, [(0, 0), (0, 3)]).tobytes()


@settings(max_examples=12)  # each writes a gallery and waits for the disk
@given(st.lists(st.text(max_size=3).filter(lambda text: "\ud800" not in text), min_size=1, max_size=30))
def test_a_key_finds_its_first_image(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("keys")
    ids = np.arange(len(keys)) * 3 + 5
    try:
        gallery.build(folder / "g", uniform_codes(len(keys), 64, 0), ids, keys, **SPACE)
    except InputError:
        return  # a key that is no text
    held = GalleryFolder(folder / "g").current()
    for key in keys:
        assert held.place_of_key(key) == keys.index(key)
        assert held.key_at(keys.index(key)) == key
    assert held.place_of_key("no such key") is None
    assert [held.place_of_id(number) for number in (5, 6, 5 + 3 * len(keys), -1)] == [0, None, None, None]
    assert held.places_of_ids(np.array([8, 5, 5, 7, 10**6])).tolist() == list(range(min(2, len(keys))))


def test_a_new_version_is_followed_and_the_one_before_stays_open(tmp_path):
    codes = uniform_codes(30, 64, 0)
    first = gallery.build(tmp_path / "g", codes[:20], None, None, **SPACE).version
    folder = GalleryFolder(tmp_path / "g")
    old = folder.current()
    second = gallery.append(tmp_path / "g", codes[20:], None, None, fingerprint=SPACE["fingerprint"]).version
    new = folder.current()
    assert (old.version, len(old), new.version, len(new)) == (first, 20, second, 30)
    assert folder.held(first) is old
    assert folder.at(first) is old
    for row in (1, 2):
        assert folder.held(first) is old
        gallery.append(tmp_path / "g", codes[:row], None, None, fingerprint=SPACE["fingerprint"])
        folder.current()
    assert folder.held(first) is None


def test_while_a_new_version_cannot_be_used_the_one_before_is_and_the_new_one_is_tried_again(tmp_path, monkeypatch):
    codes = uniform_codes(30, 64, 0)
    first = gallery.build(tmp_path / "g", codes[:20], None, None, **SPACE).version
    folder = GalleryFolder(tmp_path / "g")
    second = gallery.append(tmp_path / "g", codes[20:], None, None, fingerprint=SPACE["fingerprint"])
    second.path.rename(tmp_path / "arrives later")
    looks, look = [], gallery.open_current
    monkeypatch.setattr(gallery, "open_current", lambda *given, **named: looks.append(1) or look(*given, **named))
    assert [folder.current().version for _ in range(3)] == [first] * 3
    assert len(looks) == 1
    assert GalleryFolder(tmp_path / "g").current().version == first  # a page that starts now, too
    (tmp_path / "arrives later").rename(second.path)
    folder._refused_until = 0.0
    assert folder.current().version == second.version
    (tmp_path / "g" / "CURRENT").write_text("")
    assert folder.current().version == second.version


def test_what_was_rolled_back_is_not_in_use_again_while_a_new_version_cannot_be_used(tmp_path, monkeypatch, caplog):
    codes = uniform_codes(30, 64, 0)
    first = gallery.build(tmp_path / "g", codes[:20], None, None, **SPACE).version
    second = gallery.append(tmp_path / "g", codes[20:], None, None, fingerprint=SPACE["fingerprint"]).version
    folder = GalleryFolder(tmp_path / "g")
    assert folder.current().version == second
    gallery.rollback(tmp_path / "g")
    assert folder.current().version == first
    third = gallery.append(tmp_path / "g", codes[20:25], None, None, fingerprint=SPACE["fingerprint"])
    third.path.unlink()
    monkeypatch.setattr(collection, "_REFUSED_SECONDS", 0.0)
    assert [folder.current().version for _ in range(3)] == [first] * 3
    (said,) = caplog.messages
    assert third.path.name in said
    assert said.endswith(f"; the page goes on with version {first}")
    gallery.rollback(tmp_path / "g")
    assert folder.current().version == first
    (tmp_path / "g" / "CURRENT").unlink()
    assert [folder.current().version for _ in range(3)] == [first] * 3
    assert len(caplog.messages) == 2


def test_readers_of_old_versions_do_not_close_the_current_one(tmp_path):
    codes = uniform_codes(100, 64, 0)
    versions = [gallery.build(tmp_path / "g", codes[:90], None, None, **SPACE).version]
    for row in range(90, 94):
        added = gallery.append(tmp_path / "g", codes[row : row + 1], None, None, fingerprint=SPACE["fingerprint"])
        versions.append(added.version)
    folder = GalleryFolder(tmp_path / "g")
    current = folder.current()
    opened = [folder.at(version) for version in versions]
    assert sum(each is not None for each in opened) > 3  # their parts are there
    assert folder.held(versions[-1]) is current
    assert len(folder._held) == 3


def test_who_waits_while_a_version_is_opened_does_not_open_it_again(tmp_path, monkeypatch):
    codes = uniform_codes(30, 64, 0)
    first = gallery.build(tmp_path / "g", codes[:20], None, None, **SPACE).version
    gallery.append(tmp_path / "g", codes[20:], None, None, fingerprint=SPACE["fingerprint"])
    folder = GalleryFolder(tmp_path / "g")
    opened, open_version = [], collection.open_version
    monkeypatch.setattr(collection, "open_version", lambda *given: opened.append(1) or open_version(*given))

    class Busy:
        """A lock that comes free once another has opened the version."""

        def __enter__(self):
            folder._lock = lock
            folder.at(first)
            lock.__enter__()

        def __exit__(self, *error):
            lock.__exit__(*error)

    lock, folder._lock = folder._lock, Busy()
    assert folder.at(first).version == first
    assert len(opened) == 1


def test_while_a_version_is_opened_others_go_on_with_the_one_before(tmp_path):
    codes = uniform_codes(30, 64, 0)
    first = gallery.build(tmp_path / "g", codes[:20], None, None, **SPACE).version
    folder = GalleryFolder(tmp_path / "g")
    second = gallery.append(tmp_path / "g", codes[20:], None, None, fingerprint=SPACE["fingerprint"]).version
    with ThreadPoolExecutor(1) as pool, folder._lock:  # which another holds that opens the version
        assert pool.submit(folder.current).result(timeout=30).version == first
    assert folder.current().version == second


def test_a_version_that_is_gone_is_none(tmp_path):
    gallery.build(tmp_path / "g", uniform_codes(3, 64, 0), None, None, **SPACE)
    assert GalleryFolder(tmp_path / "g").at("00000007-01234567") is None
    for no_version in ("", "../g/gallery-00000001-01234567", "00000007-01234567/..", "00000007-01234567\0"):
        with pytest.raises(InputError, match="is no version of a gallery"):
            GalleryFolder(tmp_path / "g").at(no_version)
    with pytest.raises(InputError, match="is not a gallery"):
        GalleryFolder(tmp_path)


def test_a_gallery_without_keys_has_none(tmp_path):
    gallery.build(tmp_path / "g", uniform_codes(3, 64, 0), None, None, **SPACE)
    held = GalleryFolder(tmp_path / "g").current()
    assert (held.key_at(1), held.place_of_key("")) == ("", None)
