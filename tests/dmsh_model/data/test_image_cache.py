import fcntl
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dmsh_model.data import image_cache
from dmsh_model.data import load as data
from dmsh_model.data.load import load_labelled
from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.images.framing import Framing


@pytest.fixture
def photos(tmp_path):
    """Two classes of three noisy images."""
    random = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "cat/c", "dog/a", "dog/b", "dog/c"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """Count how often images are decoded."""
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    original = data.iter_listed_batches
    monkeypatch.setattr(data, "iter_listed_batches", counted)
    return calls


def test_images_are_decoded_once_and_are_the_same_from_the_cache(photos, tmp_path, decoded):
    plain = load_labelled(str(photos), 16)
    first, again = (load_labelled(str(photos), 16, cache=tmp_path / "cache") for _ in range(2))
    assert len(decoded) == 2  # plain and first
    assert first.sha256 == again.sha256 == plain.sha256
    assert again.names == plain.names
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cached_image_can_be_changed_in_memory_and_not_on_disk(photos, tmp_path):
    images = load_labelled(str(photos), 16, cache=tmp_path / "cache").images
    before = images.copy()
    images[:] = 0
    assert (load_labelled(str(photos), 16, cache=tmp_path / "cache").images == before).all()


def test_another_folder_with_the_same_names_sizes_and_times_has_an_entry_of_its_own(photos, tmp_path):
    other = tmp_path / "other"
    for number, path in enumerate(sorted(photos.glob("*/*"))):
        twin = other / path.relative_to(photos)
        twin.parent.mkdir(parents=True, exist_ok=True)
        for place, value in ((path, number), (twin, 100 + number)):
            Image.new("RGB", (16, 16), (value, value, value)).save(place, "BMP")
            os.utime(place, ns=(1, 1))
    found = [load_labelled(str(folder), 16, cache=tmp_path / "cache").images[:, 0, 0, 0] for folder in (photos, other)]
    assert np.array_equal(found, [np.arange(6), 100 + np.arange(6)])


@pytest.mark.parametrize("change", ["size", "time", "content", "name", "image size", "file more"])
def test_a_change_of_the_files_decodes_anew(photos, tmp_path, decoded, change):
    load_labelled(str(photos), 16, cache=tmp_path / "cache")
    file = photos / "cat" / "a.png"
    if change == "size":
        Image.new("RGB", (16, 16)).save(file)
    if change == "time":
        os.utime(file, ns=(1, 1))
    if change == "content":
        before = file.stat()
        file.write_bytes(file.read_bytes())
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as archives give all their files
    if change == "name":
        file.rename(photos / "cat" / "aa.png")
    if change == "file more":
        shutil.copy(file, photos / "cat" / "d.png")
    size = 8 if change == "image size" else 16
    cached = load_labelled(str(photos), size, cache=tmp_path / "cache")
    assert len(decoded) == 2
    assert cached.sha256 == load_labelled(str(photos), size).sha256


@pytest.mark.parametrize(
    "damage", ["cut", "no pixels", "no record", "record cut", "[1]", "[" * 100_000], ids=lambda text: text[:10]
)
def test_an_entry_that_is_not_whole_is_decoded_anew(photos, tmp_path, decoded, damage):
    whole = load_labelled(str(photos), 16, cache=tmp_path / "cache").sha256
    (pixels,), (record,) = (list((tmp_path / "cache").glob(pattern)) for pattern in ("*.rgb", "*.json"))
    if damage == "cut":
        os.truncate(pixels, 100)
    if damage == "no pixels":
        pixels.unlink()
    if damage == "no record":
        record.unlink()
    if damage == "record cut":
        os.truncate(record, 10)
    if damage.startswith("["):
        record.write_text(damage)
    assert load_labelled(str(photos), 16, cache=tmp_path / "cache").sha256 == whole
    assert len(decoded) == 2


def test_a_run_that_fails_leaves_no_entry(photos, tmp_path):
    (photos / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match="broken"):
        load_labelled(str(photos), 16, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_run_left_is_written_over(photos, tmp_path):
    whole = load_labelled(str(photos), 16, cache=tmp_path / "cache").sha256
    (pixels,), (record,) = (list((tmp_path / "cache").glob(pattern)) for pattern in ("*.rgb", "*.json"))
    record.unlink()
    pixels.rename(pixels.with_suffix(".unfinished"))
    assert load_labelled(str(photos), 16, cache=tmp_path / "cache").sha256 == whole
    assert not list((tmp_path / "cache").glob("*.unfinished"))


def test_a_second_run_of_the_same_images_is_told_to_wait(photos, tmp_path):
    load_labelled(str(photos), 16, cache=tmp_path / "cache")
    (record,) = (tmp_path / "cache").glob("*.json")
    record.unlink()
    with record.with_suffix(".unfinished").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is decoding the same images"):
            load_labelled(str(photos), 16, cache=tmp_path / "cache")


@pytest.mark.parametrize("last_name", [".rgb", None])
def test_a_run_that_gets_the_lock_of_one_that_has_just_ended_leaves_its_entry_alone(
    photos, tmp_path, monkeypatch, last_name
):
    load_labelled(str(photos), 16, cache=tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*.rgb")
    whole = pixels.read_bytes()
    pixels.rename(pixels.with_suffix(".unfinished"))

    def ends_first(file, how):
        unfinished = pixels.with_suffix(".unfinished")
        unfinished.replace(pixels) if last_name else unfinished.unlink()
        locked(file, how)

    locked = fcntl.flock
    monkeypatch.setattr(image_cache.fcntl, "flock", ends_first)
    with pytest.raises(InputError, match="another process has just decoded the same images: try again"):
        load_labelled(str(photos), 16, cache=tmp_path / "cache")
    assert not last_name or pixels.read_bytes() == whole


@pytest.mark.parametrize("cached", [True, False])
def test_images_that_go_away_while_they_are_decoded_are_no_bad_ones(photos, tmp_path, monkeypatch, cached):
    def unmounted(*arguments, **options):
        photos.joinpath("cat").rename(tmp_path / "away")
        yield from original(*arguments, **options)

    original = data.iter_listed_batches
    monkeypatch.setattr(data, "iter_listed_batches", unmounted)
    with pytest.raises(UnavailableError, match="cat is empty or away, but had images when they were listed"):
        load_labelled(str(photos), 16, cache=tmp_path / "cache" if cached else None, skip_bad=True)
    assert list((tmp_path / "cache").glob("*")) == []


def test_a_file_of_which_the_system_cannot_say_whether_it_is_there_is_not_absent(photos):
    with pytest.raises(OSError, match="name too long"):
        image_cache.files_key(photos, ["a" * 300], 16, Framing())


def test_images_left_out_are_remembered_and_refused_when_not_asked_for(photos, tmp_path):
    (photos / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for _ in range(2):
        assert len(load_labelled(str(photos), 16, cache=tmp_path / "cache", skip_bad=True).bad) == 1
    with pytest.raises(InputError, match=r"1 files cannot be read .*dog/broken\.png"):
        load_labelled(str(photos), 16, cache=tmp_path / "cache")


def test_a_full_disk_is_found_before_decoding(photos, tmp_path, monkeypatch, decoded):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(InputError, match="give a folder with more room"):
        load_labelled(str(photos), 16, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_more_images_than_memory_are_refused_with_the_way_out(photos, monkeypatch):
    monkeypatch.setattr(image_cache.os, "sysconf", lambda _: 32)  # 32 pages of 32 bytes
    with pytest.raises(InputError, match="give --cache FOLDER"):
        load_labelled(str(photos), 16)


def test_a_cache_that_is_a_file_is_refused(photos):
    with pytest.raises(InputError, match="is not a folder"):
        load_labelled(str(photos), 16, cache=photos / "cat" / "a.png")
