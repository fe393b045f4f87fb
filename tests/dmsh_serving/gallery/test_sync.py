"""A sync: what is new is added, what is gone is removed, what changed is encoded again, and nothing else is."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.gallery import changes
from dmsh_serving.gallery import folder as gallery_folder
from dmsh_serving.gallery import sync as module
from dmsh_serving.gallery.sync import sync
from dmsh_serving.images import read as images_read

pytest.importorskip("onnx", reason="onnx, which writes the model, is not installed")
import tiny_model
from named_pipe import pipe_at

IMAGES = tiny_model.random_images(8)


@pytest.fixture
def world(tmp_path):
    """A model, a folder of six images in two folders, and a gallery of the first four."""
    model = tiny_model.write(tmp_path / "model.onnx")
    for number in range(6):
        save(tmp_path, number, IMAGES[number])
    space = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
    gallery.build(tmp_path / "g", tiny_model.codes_of(IMAGES[:4]), None, [key(n) for n in range(4)], **space)

    def run(**options):
        return sync(tmp_path / "g", tmp_path / "images", model, 4, **options)

    return tmp_path, run


def key(number):
    return f"{'ab'[number % 2]}/{number}.png"


def save(root, number, pixels):
    path = root / "images" / key(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def held(root):
    """Return {key: code} of the gallery, which must hold each key once."""
    contents = gallery.open_current(root / "g").contents()
    found = dict(zip(contents.keys, map(bytes, contents.codes), strict=True))
    assert len(found) == len(contents.ids)
    return found


def expected(numbers, images=IMAGES):
    return {key(n): tiny_model.codes_of(images[n : n + 1])[0].tobytes() for n in numbers}


def count_encoded(monkeypatch):
    encoded = []
    real = module.iter_listed_batches

    def counted(folder, names, *arguments, **options):
        encoded.extend(names)
        return real(folder, names, *arguments, **options)

    monkeypatch.setattr(module, "iter_listed_batches", counted)
    return encoded


def test_a_sync_makes_the_gallery_hold_what_the_folder_holds(world, monkeypatch):
    root, run = world
    (root / "images" / key(1)).unlink()
    save(root, 2, IMAGES[7])
    done = run()
    assert held(root) == expected([0, 3, 4, 5]) | {key(2): tiny_model.codes_of(IMAGES[7:])[0].tobytes()}
    assert (sorted(done.added), done.changed, done.removed) == ([key(4), key(5)], [key(2)], [key(1)])
    assert done.unchanged == 2
    encoded = count_encoded(monkeypatch)
    version = done.snapshot.version
    again = run()
    assert (again.added, again.changed, again.removed, again.unchanged) == ([], [], [], 5)
    assert (encoded, again.snapshot.version) == ([], version)  # told by content, without encoding or writing a version


def test_only_files_whose_content_is_another_are_encoded_again(world, monkeypatch):
    root, run = world
    run()
    encoded = count_encoded(monkeypatch)
    (root / "images" / key(0)).touch()
    save(root, 3, IMAGES[6])
    assert run().changed == [key(3)]
    assert encoded == [key(3)]


def test_a_record_that_does_not_fit_the_gallery_costs_time_and_nothing_else(world):
    root, run = world
    run()
    # Another writer gives two images other codes: the record still has their files.
    gallery.remove(root / "g", np.array([0, 1]))
    gallery.append(root / "g", tiny_model.codes_of(IMAGES[6:]), None, [key(0), key(1)])
    done = run()
    assert sorted(done.changed) == [key(0), key(1)]
    assert held(root) == expected(range(6))
    for record in ("no record", "[" * 100_000):
        (root / "g" / module.RECORD).write_text(record)
        assert (run().unchanged, held(root)) == (6, expected(range(6)))


def test_a_key_that_is_there_twice_is_there_once_afterwards(world):
    root, run = world
    gallery.append(root / "g", tiny_model.codes_of(IMAGES[:1]), None, [key(0)])
    assert run().removed == [key(0)]
    assert held(root) == expected(range(6))


def meanwhile(monkeypatch, *changes):
    """Let other writers do ``changes``, each while one round of images is encoded; return what is encoded in all."""
    encoded, coming = count_encoded(monkeypatch), iter(changes)
    counted = module.iter_listed_batches

    def interrupted(*arguments, **options):
        next(coming, lambda: None)()
        return counted(*arguments, **options)

    monkeypatch.setattr(module, "iter_listed_batches", interrupted)
    return encoded


def test_two_syncs_at_the_same_time_add_each_image_once(world, monkeypatch):
    root, run = world
    (root / "images" / key(1)).unlink()
    save(root, 2, IMAGES[7])
    encoded = meanwhile(monkeypatch, run)
    done = run()
    assert held(root) == expected([0, 3, 4, 5]) | {key(2): tiny_model.codes_of(IMAGES[7:])[0].tobytes()}
    assert (done.added, done.changed, done.removed, done.unchanged) == ([], [], [], 5)
    assert sorted(encoded) == sorted(2 * [key(n) for n in (0, 2, 3, 4, 5)])  # and nothing a third time


def test_what_other_writers_change_while_images_are_encoded_is_seen_before_anything_is_written(world, monkeypatch):
    root, run = world
    run()
    save(root, 5, IMAGES[6])
    folder = root / "g"
    ids = dict(zip(*(gallery.open_current(folder).contents().__dict__[name] for name in ("keys", "ids")), strict=True))
    encoded = meanwhile(
        monkeypatch,
        lambda: gallery.remove(folder, np.array([ids[key(0)], ids[key(5)]])),
        lambda: gallery.append(folder, tiny_model.codes_of(IMAGES[:2]), None, [key(3), "gone.png"]),
    )
    done = run()
    assert held(root) == expected(range(5)) | {key(5): tiny_model.codes_of(IMAGES[6:7])[0].tobytes()}
    assert encoded == [key(5), key(0), key(3)]  # in three rounds, each what the one before could not know
    assert (sorted(done.added), done.changed) == ([key(0), key(5)], [key(3)])
    assert sorted(done.removed) == [key(3), "gone.png"]


def test_a_folder_that_cannot_be_listed_is_an_error_not_a_reason_to_remove_its_images(world, monkeypatch):
    root, run = world
    scandir, before = os.scandir, held(root)

    def damaged(path):
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", damaged)
    with pytest.raises(PermissionError, match="images/b"):
        run()
    assert held(root) == before


class WithoutTypes:
    """Lists as a file system that gives no types with names, and does not find out what ``b`` is."""

    def __init__(self, listing):
        self.listing = listing

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listing.close()

    def __iter__(self):
        return self

    def __next__(self):
        entry = next(self.listing)

        def is_dir(**options):
            if entry.name == "b":
                raise OSError(errno.EIO, "Input/output error", entry.path)
            return entry.is_dir(**options)

        return SimpleNamespace(name=entry.name, path=entry.path, is_dir=is_dir, is_symlink=entry.is_symlink)


def test_nor_is_a_folder_of_which_the_system_does_not_say_that_it_is_one(world, monkeypatch):
    root, run = world
    scandir, before = os.scandir, held(root)
    monkeypatch.setattr(os, "scandir", lambda path: WithoutTypes(scandir(path)))
    with pytest.raises(OSError, match="Input/output error"):
        run(skip_bad=True)
    assert held(root) == before


@pytest.mark.parametrize("mounted", ["images", "images/a"])
def test_nor_is_a_folder_that_goes_away_while_its_images_are_read(world, monkeypatch, mounted):
    root, run = world
    before = held(root)

    def unmount():
        (root / mounted).rename(root / "away")
        (root / mounted).mkdir()

    meanwhile(monkeypatch, unmount)
    with pytest.raises(UnavailableError, match="is empty or away"):
        run(skip_bad=True)
    assert held(root) == before


def test_images_of_a_folder_that_is_empty_are_not_gone_until_the_folder_is(world):
    root, run = world
    run()
    before = held(root)
    for file in (root / "images" / "a").iterdir():
        file.unlink()
    with pytest.raises(UnavailableError, match="a is empty, and the gallery holds images of it: its disk may be away"):
        run(skip_bad=True)
    assert held(root) == before
    (root / "images" / "a").rmdir()
    assert sorted(run().removed) == sorted(before.keys() - held(root).keys())
    assert len(held(root)) < len(before)


def test_an_image_that_is_listed_but_not_found_keeps_its_code(world, monkeypatch):
    root, run = world
    read = images_read.read_regular

    def away(path, most):
        if path.parent.name == "a":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return read(path, most)

    with monkeypatch.context() as disk:
        disk.setattr(images_read, "read_regular", away)
        done = run(skip_bad=True)
    assert (done.added, done.removed, done.unchanged, len(done.bad)) == ([key(5)], [], 2, 3)
    assert held(root) == expected([0, 1, 2, 3, 5])
    assert (run().added, held(root)) == ([key(4)], expected(range(6)))


def test_an_image_that_is_deleted_while_images_are_read_is_gone(world, monkeypatch):
    root, run = world
    meanwhile(monkeypatch, (root / "images" / key(0)).unlink)
    assert (run(skip_bad=True).removed, held(root)) == ([key(0)], expected(range(1, 6)))


def test_an_image_that_another_sync_adds_while_images_are_read_stays(world, monkeypatch):
    root, run = world

    def other():
        save(root, 7, IMAGES[7])
        run()

    meanwhile(monkeypatch, other)
    assert (run().removed, key(7) in held(root)) == ([], True)
    assert run().unchanged == 7


def test_a_file_that_is_edited_while_it_is_encoded_is_encoded_again_though_it_is_put_back(world, monkeypatch):
    root, run = world
    meanwhile(monkeypatch, lambda: save(root, 4, IMAGES[7]))
    run()
    assert held(root)[key(4)] == tiny_model.codes_of(IMAGES[7:])[0].tobytes()
    save(root, 4, IMAGES[4])
    assert run().changed == [key(4)]
    assert held(root) == expected(range(6))
    assert run().unchanged == 6


def test_what_is_no_regular_file_is_not_waited_for(world):
    root, run = world
    with pipe_at(root / "images" / "b" / "pipe.png"):
        assert len(run(skip_bad=True).bad) == 1
    assert held(root) == expected(range(6))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EINVAL, errno.ENXIO], ids=errno.errorcode.get)
def test_files_that_a_disk_does_not_give_are_an_error_not_damaged_images(world, monkeypatch, number):
    root, run = world
    run()
    before, read = held(root), images_read.read_regular

    def stale(path, most):
        if path.name == "5.png":
            raise OSError(number, "the disk does not give it", str(path))
        return read(path, most)

    monkeypatch.setattr(images_read, "read_regular", stale)
    save(root, 5, IMAGES[7])
    with pytest.raises(OSError, match="the disk does not give it"):
        run(skip_bad=True)
    assert held(root) == before


def test_a_sync_that_has_encoded_waits_for_the_writer_that_is_just_at_work(world, monkeypatch):
    root, run = world
    with contextlib.ExitStack() as writer:
        meanwhile(monkeypatch, lambda: writer.enter_context(gallery_folder.writing(root / "g")))
        monkeypatch.setattr(gallery_folder.time, "sleep", lambda _: writer.close())
        assert run().added == [key(4), key(5)]
        assert held(root) == expected(range(6))
    with gallery_folder.writing(root / "g"):
        monkeypatch.setattr(changes, "_PATIENCE_SECONDS", 0.0)
        save(root, 0, IMAGES[7])
        with pytest.raises(InputError, match="is being changed by another process"):
            run()


def test_a_sync_makes_one_version_and_gives_no_id_twice(world):
    root, run = world
    (root / "images" / key(3)).unlink()
    before = gallery.current_version(root / "g")
    assert int(run().snapshot.version[:8]) == int(before[:8]) + 1
    assert gallery.open_current(root / "g").contents().ids.tolist() == [0, 1, 2, 4, 5]


def test_a_sync_of_an_emptied_gallery_fills_it(world):
    root, run = world
    gallery.remove(root / "g", np.arange(4))
    assert (len(run().added), held(root)) == (6, expected(range(6)))


def test_a_damaged_image_ends_a_sync_before_anything_changes_unless_it_is_skipped(world):
    root, run = world
    version = gallery.current_version(root / "g")
    (root / "images" / key(0)).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a/0\.png"):
        run()
    assert gallery.current_version(root / "g") == version
    done = run(skip_bad=True)
    assert (done.removed, len(done.bad)) == ([key(0)], 1)
    assert held(root) == expected(range(1, 6))
    assert run(skip_bad=True).bad  # the only file to encode, and none that can be


def test_what_cannot_be_synced_is_refused(world, tmp_path):
    root, run = world
    shutil.rmtree(root / "images")
    with pytest.raises(InputError, match="is not a folder"):
        run()
    (root / "images").mkdir()
    with pytest.raises(InputError, match="a sync would empty"):
        run()
    save(root, 0, IMAGES[0])
    other = tiny_model.write(tmp_path / "other.onnx", fingerprint="cd" * 32)
    with pytest.raises(InputError, match="belongs to another model"):
        sync(root / "g", root / "images", other, 4)
    space = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
    gallery.build(root / "g", tiny_model.codes_of(IMAGES[:1]), None, None, overwrite=True, **space)
    with pytest.raises(InputError, match="has no keys"):
        run()
