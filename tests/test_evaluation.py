import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_model import evaluation
from dmsh_model.evaluation import (
    average_precision,
    mean_average_precision,
    mean_average_precision_of_answers,
    mean_precision,
)
from dmsh_serving.errors import InputError
from dmsh_serving.hamming_oracle import search_oracle


def slow_scores(query_codes, database_codes, query_labels, database_labels, topk):
    """mAP@topk and precision@topk, as a person would compute them with a pencil."""
    average_precisions, precisions = [], []
    for query, label in zip(query_codes, query_labels, strict=True):
        ranked = sorted(
            range(len(database_codes)),
            key=lambda row: (sum(int(a ^ b).bit_count() for a, b in zip(query, database_codes[row], strict=True)), row),
        )[:topk]
        hits, total = 0, 0.0
        for rank, row in enumerate(ranked, 1):
            if database_labels[row] == label:
                hits += 1
                total += hits / rank
        average_precisions.append(total / hits if hits else 0.0)
        precisions.append(hits / len(ranked))
    return sum(average_precisions) / len(average_precisions), sum(precisions) / len(precisions)


@st.composite
def retrievals(draw):
    seed, queries, database, width = (draw(st.integers(0, 10**6)), *(draw(st.integers(1, n)) for n in (8, 30, 4)))
    random = np.random.default_rng(seed)
    few_values = draw(st.booleans())  # many ties
    high = 2 if few_values else 256
    return (
        random.integers(0, high, (queries, width), np.uint8),
        random.integers(0, high, (database, width), np.uint8),
        random.integers(0, 3, queries),
        random.integers(0, 3, database),
    )


@settings(deadline=None, max_examples=150)
@given(retrievals(), st.none() | st.integers(1, 40))
def test_map_and_precision_are_what_a_slow_obvious_loop_gives(arrays, topk):
    expected_map, expected_precision = slow_scores(*arrays, topk)
    assert mean_average_precision(*arrays, topk=topk) == pytest.approx(expected_map, abs=1e-12)
    if topk is not None:
        assert mean_precision(*arrays, topk=topk) == pytest.approx(expected_precision, abs=1e-12)


@settings(deadline=None)
@given(retrievals(), st.integers(1, 40))
def test_ranked_answers_give_exactly_the_map_of_the_codes(arrays, topk):
    query_codes, database_codes, query_labels, database_labels = arrays
    _, ids = search_oracle(query_codes, database_codes, len(database_codes))
    assert mean_average_precision_of_answers(ids, query_labels, database_labels) == mean_average_precision(*arrays)
    _, ids = search_oracle(query_codes, database_codes, topk)  # padded with -1 beyond the database
    answered = mean_average_precision_of_answers(ids, query_labels, database_labels, topk=topk)
    assert answered == pytest.approx(mean_average_precision(*arrays, topk=topk), abs=1e-15)


def test_the_number_of_queries_ranked_at_once_changes_nothing(monkeypatch):
    random = np.random.default_rng(0)
    arrays = (
        random.integers(0, 256, (20, 8), np.uint8),
        random.integers(0, 256, (50, 8), np.uint8),
        random.integers(0, 3, 20),
        random.integers(0, 3, 50),
    )
    at_once = mean_average_precision(*arrays)
    monkeypatch.setattr(evaluation, "_CELLS_AT_ONCE", 3 * 50)
    assert mean_average_precision(*arrays) == at_once


def test_average_precision_is_divided_by_the_relevant_images_among_those_ranked():
    relevant = np.array([[True, False, True, False], [False, False, False, False], [False, True, False, False]])
    assert average_precision(relevant) == pytest.approx([(1 + 2 / 3) / 2, 0, 1 / 2])


def test_ties_are_broken_by_the_database_row():
    codes = np.zeros((2, 1), np.uint8)
    first_right, last_right = np.array([1, 0]), np.array([0, 1])
    query, label = np.zeros((1, 1), np.uint8), np.array([1])
    assert mean_average_precision(query, codes, label, first_right) == 1
    assert mean_average_precision(query, codes, label, last_right) == 0.5


CODES, LABELS = np.zeros((3, 2), np.uint8), np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("arguments", "topk", "message"),
    [
        ((CODES, CODES[:0], LABELS, LABELS[:0]), None, "database codes"),
        ((CODES, CODES, LABELS[:2], LABELS), None, "query codes"),
        ((CODES.astype(np.int8), CODES, LABELS, LABELS), None, "query codes int8"),
        ((CODES, CODES[:, :1], LABELS, LABELS), None, "2 bytes, database codes 1"),
        ((CODES, CODES, LABELS, LABELS), 0, "topk = 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, topk, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision(*arguments, topk=topk)


@pytest.mark.parametrize(
    ("ids", "topk", "message"),
    [
        (np.zeros((2, 2), np.int64), None, "3 query labels"),
        (np.zeros((3, 0), np.int64), None, "3 query labels"),
        (np.full((3, 1), 3), None, "no rows of a database of 3"),
        (np.full((3, 1), -2), None, "no rows of a database of 3"),
        (np.zeros((3, 1), np.int64), 0, "topk = 0"),
    ],
)
def test_answers_that_no_search_gives_are_refused(ids, topk, message):
    with pytest.raises(InputError, match=message):
        mean_average_precision_of_answers(ids, LABELS, LABELS, topk=topk)
