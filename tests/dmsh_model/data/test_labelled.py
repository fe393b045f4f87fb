import numpy as np
import pytest
from toy_labels import made, multi_hot

from dmsh_model.data.labelled import LabelledImages
from dmsh_serving.errors import InputError


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        ([0, 1, 2], 4, "toy: 4 images, 3 labels and 4 names"),
        ([0, 3], None, "labels 0 to 3 must be 0 to 2"),
        ([-1, 0], None, "labels -1 to 0 must be 0 to 2"),
        (multi_hot([1, 0]), None, "a column for each of 3 labels"),
        (multi_hot([1, 0, 2]), None, "rows of 0 and 1"),
        (multi_hot([1, 0, 0], [0, 0, 0], [0, 0, 0]), None, "2 images have no label.*n1, n2"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(labels, count, message):
    with pytest.raises(InputError, match=message):
        made(labels, count)


def test_several_labels_an_image_are_taken():
    assert made(multi_hot([1, 0, 1], [0, 1, 0])).labels.sum() == 3


def test_the_sha256_notices_one_label_more_and_tells_multi_hot_from_classes():
    digests = {made(labels).sha256 for labels in (multi_hot([1, 0, 0]), multi_hot([1, 0, 1]), np.array([0]))}
    assert len(digests) == 3


def test_the_sha256_of_a_mapped_file_is_that_of_the_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2000, 2, 2, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    labels, names = np.zeros(2000, np.int64), [str(row) for row in range(2000)]
    of_file, of_array = (
        LabelledImages("toy", array, labels, names, ["a", "b"]).sha256
        for array in (np.load(tmp_path / "images.npy", mmap_mode="r"), images)
    )
    assert of_file == of_array
