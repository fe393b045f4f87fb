import io
import pickle
import shutil
import time

import numpy as np
import pytest
from named_pipe import pipe_at
from PIL import Image

from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.images import decode, read
from dmsh_serving.images.decode import MAX_FILE_BYTES
from dmsh_serving.images.read import image_paths, iter_image_batches, iter_listed_batches, load_images, others_line


def save_image(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images in three folders, and hidden files that are none."""
    root = tmp_path / "images"
    for value, name in enumerate(["b/1.png", "a.png", "b/0.png", "c/d/x.png", "b.png"]):
        save_image(root / name, value)
    (root / ".hidden").write_text("no image")
    (root / ".cache").mkdir()
    (root / ".cache" / "z.png").write_text("no image")
    return root


def test_a_folder_is_read_in_the_order_of_its_relative_paths(folder):
    found = load_images(folder, 8)
    assert found.names == ["a.png", "b.png", "b/0.png", "b/1.png", "c/d/x.png"]
    assert found.images[:, 0, 0, 0].tolist() == [1, 4, 2, 0, 3]
    assert (found.images.shape, found.images.dtype, found.bad) == ((5, 8, 8, 3), np.uint8, [])


def test_the_next_batch_is_decoded_while_the_caller_works(folder, monkeypatch):
    decoded = []
    real = read.image_from_bytes
    monkeypatch.setattr(
        read, "image_from_bytes", lambda *a, **named: decoded.append(named["name"]) or real(*a, **named)
    )
    batches = iter_image_batches(folder, 8, 2)
    assert next(batches).names == ["a.png", "b.png"]
    end = time.monotonic() + 10
    while len(decoded) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(decoded) == ["a.png", "b.png", "b/0.png", "b/1.png"], "and no third batch"


def test_a_caller_who_stops_waits_for_no_more_files(folder, monkeypatch):
    monkeypatch.setattr(read, "available_cpus", lambda: 1)
    started = []
    monkeypatch.setattr(read, "_read", lambda path, *_: started.append(path) or time.sleep(0.05) or "none")
    batches = iter_image_batches(folder, 8, 1, skip_bad=True)
    next(batches)
    batches.close()
    assert len(started) <= 3


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
def test_batches_joined_are_the_whole(folder, batch_size):
    batches = list(iter_image_batches(folder, 8, batch_size))
    assert max(len(batch.images) for batch in batches) <= batch_size
    assert np.array_equal(np.concatenate([b.images for b in batches]), load_images(folder, 8).images)
    assert [name for batch in batches for name in batch.names] == load_images(folder, 8).names


def test_progress_counts_to_the_end(folder):
    seen = []
    list(iter_image_batches(folder, 8, 2, on_progress=lambda done, total: seen.append((done, total))))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_corrupt_images_are_named_and_counted(folder):
    for name in ("aa.png", "b/1.png", "zz.jpg", "zzz.jpg"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(InputError, match=r"4 of 8 files cannot be read.*aa\.png: .*b/1\.png: .*and 1 more"):
        load_images(folder, 8)


def test_corrupt_images_are_left_out_and_listed_when_asked(folder):
    (folder / "b" / "1.png").write_bytes(b"")
    found = load_images(folder, 8, skip_bad=True)
    assert found.names == ["a.png", "b.png", "b/0.png", "c/d/x.png"]
    assert found.bad == ["b/1.png: the file is empty"]
    by_ones = list(iter_image_batches(folder, 8, 1, skip_bad=True))
    assert [len(batch.images) for batch in by_ones] == [1, 1, 1, 0, 1]


def test_where_nothing_can_be_read_skipping_does_not_help(tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(InputError, match="none of 1 files can be read"):
        load_images(tmp_path, 8, skip_bad=True)
    with pytest.raises(InputError, match="none of 1 files can be read"):
        list(iter_listed_batches(tmp_path, ["notes.png"], 8, 1, skip_bad=True))
    assert next(iter_listed_batches(tmp_path, ["notes.png"], 8, 1, skip_bad=True, need_one=False)).bad


def test_listed_files_come_in_the_order_of_the_list_and_an_absent_one_is_named(folder):
    names = [path.relative_to(folder).as_posix() for path in image_paths(folder)][::-1]
    batches = list(iter_listed_batches(folder, names, 8, 2))
    assert [name for batch in batches for name in batch.names] == names
    backwards = np.concatenate([batch.images for batch in batches])[::-1]
    assert (backwards == load_images(folder, 8).images).all()
    with pytest.raises(InputError, match=r"absent\.png: does not exist"):
        list(iter_listed_batches(folder, [*names, "absent.png"], 8, 2))


def test_a_link_to_nowhere_is_a_bad_file(folder):
    (folder / "link.png").symlink_to("missing.png")
    assert load_images(folder, 8, skip_bad=True).bad == ["link.png: does not exist"]


def test_a_folder_that_goes_away_while_its_images_are_read_is_no_folder_of_bad_images(folder):
    batches = iter_image_batches(folder, 8, 1, skip_bad=True)
    next(batches)
    shutil.rmtree(folder / "c")
    (folder / "c").mkdir()
    with pytest.raises(UnavailableError, match="c/d is empty or away"):
        list(batches)


def test_a_pipe_or_a_device_among_the_images_is_a_bad_file_that_nobody_waits_for(folder):
    (folder / "endless.png").symlink_to("/dev/zero")
    with pipe_at(folder / "pipe.png"):
        bad = load_images(folder, 8, skip_bad=True).bad
    assert bad == ["endless.png: not a regular file", "pipe.png: not a regular file"]


def test_a_file_larger_than_any_image_is_is_not_read(folder):
    with (folder / "large.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert load_images(folder, 8, skip_bad=True).bad == [f"large.png: larger than {MAX_FILE_BYTES:,} bytes"]


def test_an_array_of_images_is_read_as_it_is(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "some.npy", images)
    found = load_images(tmp_path / "some.npy", 8)
    assert np.array_equal(found.images, images)
    assert found.names[5] == "some.npy[5]"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 9, 8, 3), np.uint8), r"a\.npy: images must be uint8 \[N, 8, 8, 3\], got uint8 \[2, 9, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.float32), "got float32"),
        (np.zeros((8, 8, 3), np.uint8), r"got uint8 \[8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no images"),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a.npy", 8)


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        pickle.dumps(Exploding()),
        npy_bytes(np.array([Exploding()], dtype=object)),
        npy_bytes(np.zeros((9, 8, 8, 3), np.uint8))[:-1],
        npy_bytes(np.zeros((9, 8, 8, 3), np.uint8)).replace(b"(9, 8", b"(9999999999999999, 8"),
    ],
    ids=["empty", "text", "pickle", "objects", "cut", "overflow"],
)
def test_a_file_that_is_no_sound_array_is_refused(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npy"):
        load_images(tmp_path / "a.npy", 8)


def test_missing_empty_and_wrong_sources_are_refused(tmp_path):
    save_image(tmp_path / "one.png", 1)
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("missing", "does not exist"),
        ("missing.npy", "does not exist"),
        ("one.png", "is a file: give a folder of images"),
        ("empty", "holds no images"),
    ):
        with pytest.raises(InputError, match=message):
            load_images(tmp_path / source, 8)


def test_a_batch_below_one_is_refused(folder):
    with pytest.raises(InputError, match="batch size 0"):
        list(iter_image_batches(folder, 8, 0))


def test_hidden_files_and_folders_are_not_images(folder):
    assert all(".hidden" not in path.parts and ".cache" not in path.parts for path in image_paths(folder))


def test_a_linked_folder_is_refused_by_name_not_left_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="linked is a link to a folder"):
        load_images(tmp_path / "images", 32)


def test_files_that_are_plainly_no_images_are_left_out_by_name_and_counted(folder):
    for name in ("Thumbs.db", "notes.txt", "b/export.csv", "b/desktop.ini"):
        (folder / name).write_text("no image")
    assert load_images(folder, 8).names == ["a.png", "b.png", "b/0.png", "b/1.png", "c/d/x.png"]
    assert others_line(folder) == (
        "4 files are no image by name and left out: Thumbs.db; b/desktop.ini; b/export.csv; and 1 more"
    )
    (folder / "photo").write_text("a damaged image without a suffix")
    with pytest.raises(InputError, match="1 of 6 files cannot be read"):
        load_images(folder, 8)


def test_a_folder_of_other_files_alone_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"holds no images \(1 file is no image by name and left out: notes\.txt\)"):
        load_images(tmp_path, 8)
    (tmp_path / "notes.txt").unlink()
    assert others_line(tmp_path) is None


def test_an_image_for_which_the_memory_does_not_do_now_is_no_bad_one(folder, monkeypatch):
    def short(image, data, name):
        if name == "b/0.png":
            raise MemoryError

    monkeypatch.setattr(decode, "check_opened", short)
    with pytest.raises(UnavailableError, match=r"^b/0\.png: the image needs too much memory to decode: give more"):
        load_images(folder, 8, skip_bad=True)


def test_a_folder_in_the_place_of_an_array_is_named(tmp_path):
    with pytest.raises(InputError, match=r"is a folder: give an \.npy file of images"):
        read.load_npy(tmp_path, "images")
