import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dmsh_model.data.load import load_labelled
from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import image_from_pixels

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 8, 8), np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 1, 0], np.uint8)
ROWS = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]], np.uint8)
FASHION = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:2] + 1, "y_test": LABELS[:2]}


@pytest.fixture
def load(tmp_path):
    """Write arrays to a file and read it as labelled images."""

    def write_and_read(arrays, image_size=8, **options):
        np.savez(tmp_path / "set.npz", **arrays)
        return load_labelled(str(tmp_path / "set.npz"), image_size, **options)

    return write_and_read


def test_training_and_test_arrays_are_the_split(load):
    data = load(FASHION)
    assert data.images.shape == (7, 8, 8, 3)
    assert (data.images[5:, :, :, 2] == FASHION["x_test"]).all()
    assert (data.labels.dtype, data.labels.tolist()) == (np.int64, [0, 1, 2, 1, 0, 0, 1])
    split = data.given_split
    assert [part.tolist() for part in (split.query, split.database, split.train)] == [
        [5, 6],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]


@pytest.mark.parametrize("images", [GREY, GREY[..., None], COLOUR])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype(np.int32)])
def test_grey_and_colour_images_with_classes_are_read_and_left_to_be_split(load, images, labels):
    data = load({"images": images, "labels": labels})
    assert data.images.shape == (5, 8, 8, 3)
    assert (data.images == images.reshape(5, 8, 8, -1)).all()
    assert data.labels.tolist() == LABELS.tolist()
    assert data.given_split is None


def test_several_labels_an_image_are_kept(load):
    assert load({"images": COLOUR, "labels": ROWS}).labels.tolist() == ROWS.tolist()
    assert load({"images": COLOUR, "labels": ROWS.astype(bool)}).labels.dtype == np.uint8


@pytest.mark.parametrize("cached", [False, True])
def test_images_of_another_size_are_resized_as_the_decoder_does(load, tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):
        data = load({"images": COLOUR, "labels": LABELS}, 12, cache=cache)
        assert data.images.shape == (5, 12, 12, 3)
        expected = np.asarray(Image.fromarray(COLOUR[3]).resize((12, 12), Image.Resampling.BICUBIC))
        assert (data.images[3] == expected).all()
    assert cached == (tmp_path / "cache").exists()


def test_pixels_of_the_right_size_are_not_changed():
    assert (image_from_pixels(COLOUR[0], 8) == COLOUR[0]).all()


BAD_ARRAYS = {
    "fewer labels": ({"images": GREY, "labels": LABELS[:4]}, "5 images and 4 labels"),
    "fewer test labels": ({**FASHION, "y_test": LABELS[:1]}, "2 images and 1 labels"),
    "other keys": ({"pixels": GREY}, "holds pixels: needed are x_train"),
    "part of the keys": ({"x_train": GREY, "y_train": LABELS}, "needed are x_train"),
    "floats": ({"images": GREY / 255, "labels": LABELS}, "images float64 .* must be uint8"),
    "four channels": ({"images": np.zeros((5, 8, 8, 4), np.uint8), "labels": LABELS}, "must be uint8"),
    "nothing": ({"images": GREY[:0], "labels": LABELS[:0]}, "must be uint8"),
    "labels of floats": ({"images": GREY, "labels": LABELS / 1}, "labels float64"),
    "a label below 0": ({"images": GREY, "labels": LABELS.astype(np.int64) - 1}, "labels -1 to 1 must be 0 to"),
    "a label beyond reason": ({"images": GREY, "labels": LABELS.astype(np.uint64) << 50}, "must be 0 to 65535"),
    "rows of counts": ({"images": GREY, "labels": 2 * ROWS}, "multi-hot labels must be 0 or 1"),
    "a row without label": ({"images": GREY, "labels": ROWS * 0}, "5 images have no label"),
    "one class": ({"images": GREY, "labels": LABELS * 0}, "only one class"),
    "other sizes": ({**FASHION, "x_test": GREY[:2, :4]}, "differ in the size of their images"),
    "objects": ({"images": GREY, "labels": np.array([{}] * 5)}, "is not an .npz file"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_labelled_images_are_refused(load, case):
    arrays, message = BAD_ARRAYS[case]
    with pytest.raises(InputError, match=message):
        load(arrays)


@pytest.mark.parametrize("rows", [10**12, 10**30])
def test_arrays_that_claim_more_than_any_memory_are_refused(tmp_path, rows):
    header, labels = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (rows, 1000, 1000)})
    np.save(labels, LABELS)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
        archive.writestr("labels.npy", labels.getvalue())
    with pytest.raises(InputError, match=r"is not an \.npz file"):
        load_labelled(str(tmp_path / "set.npz"), 8)


def test_a_missing_a_damaged_and_a_foreign_file_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(InputError, match=r"does not exist: give an \.npz file with x_train"):
        load_labelled(str(path), 8)
    np.savez_compressed(path, **FASHION)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], b"", b"text", whole[:80] + bytes(200) + whole[280:]]
    np.save(tmp_path / "array.npy", GREY)
    damaged.append((tmp_path / "array.npy").read_bytes())
    encrypted = bytearray(whole)
    encrypted[6] |= 1  # of the first member's header, and of the table of contents
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    damaged.append(bytes(encrypted))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"is not an \.npz file"):
            load_labelled(str(path), 8)


def test_members_that_are_no_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name in ("images", "labels"):
            archive.writestr(name, b"text")
    with pytest.raises(InputError, match="members that are no arrays"):
        load_labelled(str(tmp_path / "set.npz"), 8)
