import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_labels import made, multi_hot

from dmsh_model.data.labelled import Split
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_serving.errors import InputError


def test_training_images_can_be_kept_out_of_the_database():
    data = made(np.repeat(np.arange(3), 20))
    inside, outside = (split_images(data, SplitOptions(4, 6, 0, train_in_database=flag)) for flag in (True, False))
    assert sorted([*outside.query, *outside.database, *outside.train]) == list(range(60))
    assert (len(outside.query), len(outside.train), len(outside.database)) == (12, 18, 30)
    # The same queries and training images: the protocols differ in the database alone.
    assert set(outside.query) == set(inside.query)
    assert set(outside.train) == set(inside.train)
    assert set(inside.database) == set(outside.database) | set(outside.train)


def test_a_class_of_one_image_is_named():
    with pytest.raises(InputError, match=r"leave out classes of one image.*2 \(1\)"):
        split_images(made([0, 0, 0, 1, 1, 1, 2]), SplitOptions(1))


def test_a_class_too_small_for_a_training_set_of_its_own_is_named():
    with pytest.raises(InputError, match=r"1 classes have no more than 5 images.*1 \(5\)"):
        split_images(made([0] * 6 + [1] * 5 + [2] * 6), SplitOptions(2, 3, train_in_database=False))


@given(st.integers(0, 10**6), st.booleans(), st.none() | st.integers(1, 5))
def test_a_split_of_several_labels_draws_every_label_and_no_image_twice(seed, inside, train):
    random = np.random.default_rng(seed)
    labels = (random.random((120, 3)) < 0.4).astype(np.uint8)
    labels[np.arange(120), random.integers(0, 3, 120)] = 1
    inside = inside or train is None
    split = split_images(made(labels), SplitOptions(3, train, seed % 100, train_in_database=inside))
    assert len(split.query) == 9
    assert (labels[split.query].sum(axis=0) >= 3).all()
    assert not set(split.query) & {*split.database, *split.train}
    assert len(set(split.train)) == len(split.train) == (111 if train is None else 3 * train)
    covered = sorted([*split.query, *split.database, *(() if inside else split.train)])
    assert covered == list(range(120))


def test_a_label_with_too_few_images_is_named():
    labels = multi_hot(*[[1, 0, 0]] * 9, *[[0, 1, 0]] * 9, [0, 0, 1], [1, 1, 1])
    with pytest.raises(InputError, match=r"1 classes .*2 \(1 not drawn yet\)|1 classes .*2 \(2 not drawn yet\)"):
        split_images(made(labels), SplitOptions(3))


def test_a_split_that_comes_with_the_images_is_kept_and_recorded_without_options():
    part = [np.array([row], np.int64) for row in range(3)]
    data = dataclasses.replace(made([0, 1, 2]), given_split=Split(*part, given=True))
    split = split_images(data, SplitOptions(50))
    assert split is data.given_split
    record = split_record(SplitOptions(50), split)
    assert record == {"given": True, "queries": 1, "database": 1, "train": 1, "sha256": split.sha256}


def test_a_drawn_split_is_recorded_with_its_options():
    options = SplitOptions(4, 6, 1, train_in_database=False)
    record = split_record(options, split_images(made(np.repeat(np.arange(3), 20)), options))
    assert (record["queries_per_class"], record["train_in_database"], record["database"]) == (4, False, 30)


@pytest.mark.parametrize(
    "options", [{"train_in_database": "no"}, {"train_per_class": None, "train_in_database": False}]
)
def test_options_that_contradict_are_refused(options):
    with pytest.raises(InputError, match="train_in_database"):
        SplitOptions(**options)
