"""What a quantisation looks at before it begins does not hang on the order of the files."""

import numpy as np
import pytest
from PIL import Image

from dmsh_export.quantise import batches
from dmsh_export.quantise.batches import batch_size, first_images, spread_batches, spread_images
from dmsh_export.quantise.run import PADDING_IMAGES, quantise
from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.images.read import iter_image_batches, iter_listed_batches

CLASS_FIRST = (3, 0, 9)  # grey padding costs class 3 too little to mend, and all classes together enough


def in_order(mnist, first):
    """Rows of 160 images: of class ``first``, then of the others one after the other; in any order without it."""
    rows = np.concatenate([np.flatnonzero(mnist.labels == label)[:16] for label in range(10)])
    if first is None:
        return np.random.default_rng(0).permutation(rows)
    return np.concatenate([rows[mnist.labels[rows] == first], rows[mnist.labels[rows] != first]])


@pytest.fixture
def padding_of(demo_model, mnist, tmp_path):
    """Returns (where padding is the mean's, what grey would cost in dB) of an .npy file sorted by class."""

    def measured(first, *, spread=True):
        path = tmp_path / f"{first}.npy"
        np.save(path, mnist.images[in_order(mnist, first)])
        size = demo_model.config.image_size
        padding_images = spread_images(path, size, PADDING_IMAGES) if spread else None
        done = quantise(demo_model, iter_image_batches(path, size, batch_size(size)), padding_images=padding_images)
        return done.centred, done.padding_signal_to_noise_db

    return measured


def test_the_padding_is_chosen_alike_whichever_class_comes_first(padding_of):
    found = [padding_of(first) for first in (*CLASS_FIRST, None)]
    assert [centred for centred, _ in found] == [True] * 4
    costs = [cost for _, cost in found]
    assert max(costs) - min(costs) < 5


def test_the_first_images_alone_would_have_chosen_otherwise(padding_of):
    assert [padding_of(first, spread=False)[0] for first in CLASS_FIRST] == [False, True, True]


@pytest.mark.parametrize(("size", "images"), [(8, 64), (39, 64), (40, 62), (224, 2), (512, 1)])
def test_a_batch_is_what_the_caches_hold(size, images):
    assert batch_size(size) == images


def write(folder, count, per_class=10):
    """Images of one value, their number, in folders of ``per_class``."""
    for number in range(count):
        path = folder / f"{number // per_class:02}" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)


def test_every_class_of_a_folder_is_looked_at_and_no_file_twice(tmp_path):
    write(tmp_path, 100)
    found = spread_images(tmp_path, 8, 20)
    values = found[:, 0, 0, 0].tolist()
    assert values == sorted(set(values))
    assert np.bincount([value // 10 for value in values]).tolist() == [2] * 10


def test_a_folder_of_fewer_images_is_looked_at_whole(tmp_path):
    write(tmp_path, 5)
    assert spread_images(tmp_path, 8, 16)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_only_the_files_looked_at_are_read(tmp_path, monkeypatch):
    from dmsh_serving.images import read as images

    write(tmp_path, 100)
    read = []
    decode = images.image_from_bytes
    monkeypatch.setattr(images, "image_from_bytes", lambda *args, **named: read.append(args) or decode(*args, **named))
    spread_images(tmp_path, 8, 16)
    assert len(read) == 16


def test_what_cannot_be_read_is_left_out_for_the_whole_reading_to_report(tmp_path):
    write(tmp_path, 40)
    for path in (tmp_path / "00").iterdir():
        path.write_bytes(b"no image")
    assert len(spread_images(tmp_path, 8, 40)) == 30
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    assert spread_images(tmp_path, 8, 40) is None


def test_nothing_to_look_at_is_none_and_an_array_of_something_else_is_refused(tmp_path):
    assert spread_images(tmp_path, 8, 16) is None
    assert spread_images(tmp_path / "absent", 8, 16) is None
    assert spread_images(tmp_path / "absent.npy", 8, 16) is None
    np.save(tmp_path / "empty.npy", np.empty((0, 8, 8, 3), np.uint8))
    assert spread_images(tmp_path / "empty.npy", 8, 16) is None
    np.save(tmp_path / "other.npy", np.zeros((3, 9, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"\[N, 8, 8, 3\]"):
        spread_images(tmp_path / "other.npy", 8, 16)


def batches_of(source, size, most, **named):
    """Return (values, names, sizes) of what is read, and the progress that was told."""
    progress = []
    found = list(spread_batches(source, 8, size, most, on_progress=lambda *done: progress.append(done), **named))
    values = [value for batch in found for value in batch.images[:, 0, 0, 0].tolist()]
    return values, [name for batch in found for name in batch.names], [len(batch.images) for batch in found], progress


def test_batches_of_a_folder_are_spread_over_it_and_no_more_than_asked_for(tmp_path):
    write(tmp_path, 20)
    values, names, sizes, progress = batches_of(tmp_path, 2, 5)
    assert values == [2, 6, 10, 14, 18]
    assert [int(name[-7:-4]) for name in names] == values
    assert sizes == [2, 2, 1]
    assert progress[-1] == (5, 5)
    for most in (20, 21):
        assert batches_of(tmp_path, 8, most)[0] == list(range(20))


def test_batches_of_an_array_are_spread_over_it_too(tmp_path):
    path = tmp_path / "some.npy"
    np.save(path, np.arange(20, dtype=np.uint8).repeat(8 * 8 * 3).reshape(20, 8, 8, 3))
    values, names, sizes, progress = batches_of(path, 2, 5)
    assert values == [2, 6, 10, 14, 18]
    assert names == [f"some.npy[{value}]" for value in values]
    assert sizes == [2, 2, 1]
    assert progress == [(2, 5), (4, 5), (5, 5)]
    assert batches_of(path, 8, 99)[0] == list(range(20))


def test_a_file_that_cannot_be_read_ends_spread_batches_unless_it_may_be_skipped(tmp_path):
    write(tmp_path, 20)
    (tmp_path / "00" / "002.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"002\.png"):
        batches_of(tmp_path, 2, 5)
    assert batches_of(tmp_path, 2, 5, skip_bad=True)[0] == [6, 10, 14, 18]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9, 30])
def test_the_first_images_are_looked_at_and_not_lost(tmp_path, count):
    write(tmp_path, 10)
    first, every = first_images(iter_image_batches(tmp_path, 8, 3), count)
    assert (first[:, 0, 0, 0].tolist() if len(first) else []) == list(range(min(count, 10)))
    assert [value for batch in every for value in batch.images[:, 0, 0, 0].tolist()] == list(range(10))


def test_of_no_batches_there_are_no_first_images():
    first, every = first_images(iter(()), 4)
    assert (first.shape, list(every)) == ((0, 1, 1, 3), [])


@pytest.mark.parametrize(
    "read",
    [lambda folder: list(spread_batches(folder, 8, 2, 4, skip_bad=True)), lambda folder: spread_images(folder, 8, 4)],
)
def test_a_folder_that_goes_away_before_its_images_are_read_is_no_folder_of_bad_images(tmp_path, monkeypatch, read):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")

    def unmounted(*arguments, **options):
        folder.rename(tmp_path / "away")
        yield from iter_listed_batches(*arguments, **options)

    monkeypatch.setattr(batches, "iter_listed_batches", unmounted)
    with pytest.raises(UnavailableError, match="images is empty or away"):
        read(folder)
