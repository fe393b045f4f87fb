import numpy as np
import pytest
import slow_retrieval as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_retrieval import random_arrays, retrievals

from dmsh_model.evaluation import mean_average_precision as evaluation
from dmsh_model.evaluation import ranks as evaluation_ranks
from dmsh_model.evaluation.mean_average_precision import (
    mean_average_precision,
    mean_average_precision_of_answers,
)
from dmsh_serving.errors import InputError
from dmsh_serving.hamming.oracle import search_oracle


@settings(max_examples=150)
@given(retrievals(), st.none() | st.integers(1, 40))
def test_map_is_what_a_slow_obvious_loop_gives(arrays, topk):
    k = topk or len(arrays[1])
    expected = slow.mean(answer.over_found(k) for answer in slow.answers(*arrays))
    assert mean_average_precision(*arrays, topk=topk) == pytest.approx(expected, abs=1e-12)


@given(retrievals(), st.integers(1, 40))
def test_ranked_answers_give_exactly_the_map_of_the_codes(arrays, topk):
    query_codes, database_codes, query_labels, database_labels = arrays
    _, ids = search_oracle(query_codes, database_codes, len(database_codes))
    assert mean_average_precision_of_answers(ids, query_labels, database_labels) == mean_average_precision(*arrays)
    _, ids = search_oracle(query_codes, database_codes, topk)  # padded with -1 beyond the database
    answered = mean_average_precision_of_answers(ids, query_labels, database_labels, topk=topk)
    assert answered == mean_average_precision(*arrays, topk=topk)


def test_how_much_is_ranked_at_once_changes_no_bit(monkeypatch):
    arrays = random_arrays(20, 50)
    at_once = mean_average_precision(*arrays)
    _, ids = search_oracle(arrays[0], arrays[1], 50)
    monkeypatch.setattr(evaluation_ranks, "_QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(evaluation_ranks, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(evaluation, "_CELLS_AT_ONCE", 3 * 50)
    assert mean_average_precision(*arrays) == at_once
    assert mean_average_precision_of_answers(ids, *arrays[2:]) == at_once


def test_one_label_as_multi_hot_is_the_same_as_its_class():
    query_codes, database_codes, query_labels, database_labels = random_arrays(9, 60)
    one_hot = np.eye(3, dtype=np.uint8)
    as_rows = (query_codes, database_codes, one_hot[query_labels], one_hot[database_labels])
    assert mean_average_precision(*as_rows) == mean_average_precision(*random_arrays(9, 60))


def test_average_precision_is_divided_by_the_relevant_images_among_those_ranked():
    ids, labels = np.array([[0, 1, 2, 3]]), np.array([1, 0, 1, 1])
    assert mean_average_precision_of_answers(ids, np.array([1]), labels, topk=3) == (1 + 2 / 3) / 2
    assert mean_average_precision_of_answers(ids, np.array([1]), labels, topk=1) == 1
    assert mean_average_precision_of_answers(ids, np.array([7]), labels) == 0


def test_ties_are_broken_by_the_database_row():
    codes = np.zeros((2, 1), np.uint8)
    first_right, last_right = np.array([1, 0]), np.array([0, 1])
    query, label = np.zeros((1, 1), np.uint8), np.array([1])
    assert mean_average_precision(query, codes, label, first_right) == 1
    assert mean_average_precision(query, codes, label, last_right) == 0.5


CODES, LABELS = np.zeros((3, 2), np.uint8), np.zeros(3, np.int64)
ROWS = np.ones((3, 4), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "topk", "message"),
    [
        ((CODES, CODES[:0], LABELS, LABELS[:0]), None, "database codes"),
        ((CODES, CODES, LABELS[:2], LABELS), None, "query codes"),
        ((CODES, CODES, LABELS, LABELS[:2]), None, "database codes"),
        ((CODES.astype(np.int8), CODES, LABELS, LABELS), None, "query codes int8"),
        ((CODES, CODES[:, :1], LABELS, LABELS), None, "2 bytes, database codes 1"),
        ((CODES, CODES, LABELS, LABELS), 0, "topk = 0"),
        ((CODES, CODES, ROWS, LABELS), None, "differ in their form"),
        ((CODES, CODES, ROWS, ROWS[:, :2]), None, "differ in their form"),
        ((CODES, CODES, ROWS.astype(np.float32), ROWS), None, "query labels float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, topk, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision(*arguments, topk=topk)


@pytest.mark.parametrize(
    ("ids", "labels", "topk", "message"),
    [
        (np.zeros((2, 2), np.int64), LABELS, None, "3 query labels"),
        (np.zeros((3, 0), np.int64), LABELS, None, "3 query labels"),
        (np.full((3, 1), 3), LABELS, None, "no rows of a database of 3"),
        (np.full((3, 1), -2), LABELS, None, "no rows of a database of 3"),
        (np.zeros((3, 1), np.int64), LABELS, 0, "topk = 0"),
        (np.zeros((3, 1), np.int64), ROWS, None, "differ in their form"),
    ],
)
def test_answers_that_no_search_gives_are_refused(ids, labels, topk, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision_of_answers(ids, LABELS, labels, topk=topk)
