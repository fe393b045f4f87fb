import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.load import load_labelled
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_serving.errors import InputError


def labelled(labels, source="toy"):
    labels = np.asarray(labels, np.int64)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    names = [str(row) for row in range(len(labels))]
    return LabelledImages(source, images, labels, names, [f"class{n}" for n in range(int(labels.max()) + 1)])


@pytest.fixture
def folder(tmp_path):
    """Two classes of three 8x8 images, one of them in a folder of its class folder."""
    for name, grey in (
        ("cat/a", 10),
        ("cat/b", 20),
        ("cat/deep/c", 30),
        ("dog/a", 110),
        ("dog/b", 120),
        ("dog/c", 130),
    ):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return tmp_path / "pets"


def test_a_folder_gives_each_image_the_class_of_its_subfolder(folder):
    data = load_labelled(str(folder), 16)
    assert data.class_names == ["cat", "dog"]
    assert data.names == ["cat/a.png", "cat/b.png", "cat/deep/c.png", "dog/a.png", "dog/b.png", "dog/c.png"]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images.shape == (6, 16, 16, 3)
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30, 110, 120, 130]


def test_a_corrupt_image_among_good_ones_is_named(folder):
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"1 of 7 files cannot be read.*dog/broken\.png"):
        load_labelled(str(folder), 16)


def test_a_corrupt_image_is_left_out_and_reported_when_asked(folder):
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = load_labelled(str(folder), 16, skip_bad=True)
    assert len(data.names) == 6
    assert [line.split(":")[0] for line in data.bad] == ["dog/broken.png"]


def test_a_folder_of_one_class_is_refused(folder):
    shutil.rmtree(folder / "dog")
    with pytest.raises(InputError, match="only the class cat"):
        load_labelled(str(folder), 16)


def test_an_image_outside_of_the_class_folders_is_refused(folder):
    (folder / "cat" / "a.png").rename(folder / "loose.png")
    with pytest.raises(InputError, match=r"outside of the class folders.*loose\.png"):
        load_labelled(str(folder), 16)


def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_labelled(str(tmp_path / "absent"), 16)
    with pytest.raises(InputError, match="is not a folder"):
        load_labelled(str(folder / "cat" / "a.png"), 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_labelled(str(tmp_path / "empty"), 16)


def test_mnist_has_500_images_a_digit_within_a_border_of_two_pixels():
    data = load_labelled("mnist5k", 32)
    assert (data.images.shape, data.images.dtype) == ((5000, 32, 32, 3), np.uint8)
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert len(set(data.names)) == 5000
    inside = data.images[:, 2:30, 2:30]
    assert int(data.images.sum()) == int(inside.sum()) > 0
    assert (data.images[..., 0] == data.images[..., 2]).all()


def test_mnist_of_another_size_is_refused():
    with pytest.raises(InputError, match="32 x 32 pixels, not 28"):
        load_labelled("mnist5k", 28)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=20, max_size=60).filter(lambda labels: min(np.bincount(labels, None, 4)) > 2),
    st.integers(1, 2),
    st.none() | st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_a_split_covers_every_image_once_and_trains_on_the_database_alone(labels, queries, train, seed):
    data = labelled(labels)
    split = split_images(data, SplitOptions(queries, train, seed))
    assert sorted([*split.query, *split.database]) == list(range(len(labels)))
    assert set(split.train) <= set(split.database)
    assert len(set(split.train)) == len(split.train)
    counts = np.bincount(data.labels)
    assert np.bincount(data.labels[split.query]).tolist() == [queries] * len(counts)
    most = counts - queries if train is None else np.minimum(counts - queries, train)
    assert np.bincount(data.labels[split.train]).tolist() == most.tolist()


def test_a_split_depends_on_its_seed_alone():
    data = labelled([0, 1] * 30)
    one, same, other = (split_images(data, SplitOptions(5, 10, seed)) for seed in (3, 3, 4))
    assert one.sha256 == same.sha256 != other.sha256


def test_the_database_is_not_in_the_order_of_its_classes():
    data = labelled([0] * 30 + [1] * 30)
    in_order = data.labels[split_images(data, SplitOptions(5, 10)).database]
    assert (in_order[1:] != in_order[:-1]).sum() > 10


def test_the_demo_split_is_500_queries_4500_database_images_and_2000_to_train_on():
    data = labelled(np.repeat(np.arange(10), 500))
    options = SplitOptions()
    record = split_record(options, split_images(data, options))
    assert (record["queries"], record["database"], record["train"]) == (500, 4500, 2000)
    # Written into every checkpoint that was trained on it: it must never change.
    assert record["sha256"] == "6700ce2e97c432aa841b95e86a6f2a2acc505d625b46c1eb8df3b722534e271c"


def test_classes_too_small_to_split_are_named():
    with pytest.raises(InputError, match=r"toy: 1 classes .* class1 \(3\)"):
        split_images(labelled([0] * 9 + [1] * 3), SplitOptions(3))


@pytest.mark.parametrize("options", [{"queries_per_class": 0}, {"train_per_class": 0}, {"seed": -1}, {"seed": 2**32}])
def test_split_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SplitOptions(**options)


def test_the_sha256_of_images_notices_a_pixel_a_label_and_a_name():
    data = labelled([0, 1, 0])
    images = data.images.copy()
    images[2, 1, 1, 2] = 1
    others = [
        LabelledImages("toy", images, data.labels, data.names, data.class_names),
        labelled([0, 1, 1]),
        LabelledImages("toy", data.images, data.labels, data.names, ["class0", "klass1"]),
    ]
    assert len({data.sha256, *(other.sha256 for other in others)}) == 4
