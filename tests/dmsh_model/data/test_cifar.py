"""CIFAR-10 is not here: its files are imitated, with their checksums, and read by torchvision's own loader."""

import hashlib
import pickle

import numpy as np
import pytest

from dmsh_model.data import cifar as data_cifar
from dmsh_model.data.load import load_labelled
from dmsh_model.data.split import SplitOptions
from dmsh_serving.errors import InputError

CLASSES = [f"class{number}" for number in range(10)]


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with ``cifar-10-batches-py``: 5 training files of 40 images, 4 a class, and one test file."""
    from torchvision.datasets import CIFAR10

    random = np.random.default_rng(0)
    batches = tmp_path / CIFAR10.base_folder
    batches.mkdir()
    listed = {}
    for number, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        pixels = random.integers(0, 256, (40, 3072), np.uint8)
        pixels[:, 0] = number
        labels = random.permutation(np.repeat(np.arange(10), 4)).tolist()
        listed[name] = write(batches / name, {"data": pixels, "labels": labels})
    meta = write(batches / "batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5] for n, md5 in listed.items() if n != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", listed["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    for name, options in data_cifar._DRAWN.items():  # a hundredth of the counts
        fewer = SplitOptions(1, 5, options.seed, options.train_in_database)
        monkeypatch.setitem(data_cifar._DRAWN, name, fewer)
    return tmp_path


def test_images_come_in_the_order_of_the_files_with_their_classes(folder):
    data = load_labelled(f"cifar10-50000:{folder}", 32)
    assert (data.images.shape, data.class_names) == ((240, 32, 32, 3), CLASSES)
    assert data.images[::40, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.bincount(data.labels).tolist() == [24] * 10
    assert data.names[239] == f"class{data.labels[239]}/00239"


def test_the_protocols_differ_in_their_databases(folder):
    splits = {name: load_labelled(f"{name}:{folder}", 32).given_split for name in data_cifar.PROTOCOLS}
    sizes = {name: (len(s.query), len(s.train), len(s.database)) for name, s in splits.items()}
    assert sizes == {
        "cifar10-54000": (10, 50, 180),
        "cifar10-59000": (10, 50, 230),
        "cifar10-50000": (40, 200, 200),
    }
    kept_out, included = splits["cifar10-54000"], splits["cifar10-59000"]
    assert set(kept_out.query) == set(included.query)
    assert set(included.database) - set(kept_out.database) == set(kept_out.train) == set(included.train)
    assert splits["cifar10-50000"].query.tolist() == list(range(200, 240))
    assert all(split.given for split in splits.values())


def test_a_protocol_is_the_same_split_every_time(folder):
    one, two = (load_labelled(f"cifar10-54000:{folder}", 32).given_split for _ in range(2))
    assert one.sha256 == two.sha256


def test_the_counts_of_the_protocols_are_those_of_their_names():
    drawn = data_cifar._DRAWN
    for name, options in drawn.items():
        queries, train = 10 * options.queries_per_class, 10 * options.train_per_class
        database = 60_000 - queries - (0 if options.train_in_database else train)
        assert (queries, train, name) == (1000, 5000, f"cifar10-{database}")


def test_other_sizes_are_resized(folder):
    assert load_labelled(f"cifar10-50000:{folder}", 40).images.shape == (240, 40, 40, 3)


def test_absent_and_damaged_files_are_refused_with_where_to_get_them(folder, tmp_path):
    for place in (tmp_path / "elsewhere", folder):
        if place == folder:
            file = folder / "cifar-10-batches-py" / "data_batch_3"
            file.write_bytes(file.read_bytes()[:-1] + b"\0")
        with pytest.raises(InputError, match=r"cifar-10-batches-py is not there, or not whole: get https://.* unpack"):
            load_labelled(f"cifar10-54000:{place}", 32)
    with pytest.raises(InputError, match="give cifar10-54000:FOLDER"):
        load_labelled("cifar10-54000", 32)
