import itertools
import tracemalloc

import numpy as np
import pytest
import slow_retrieval as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_retrieval import random_arrays, retrievals

from dmsh_model.evaluation import ranks as evaluation_ranks
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.evaluation.report import LOOKUP_RADIUS, measure_retrieval
from dmsh_serving.errors import InputError

EXACT = {"abs": 1e-12, "rel": 0}


@settings(max_examples=150)
@given(retrievals(), st.integers(1, 40))
def test_every_metric_is_what_a_slow_obvious_loop_gives(arrays, k):
    answers = slow.answers(*arrays)
    got = measure_retrieval(*arrays, ks=[k])
    size = len(arrays[1])
    assert got.map_all == pytest.approx(slow.mean(a.over_found(size) for a in answers), **EXACT)
    assert (got.queries, got.database) == (len(answers), size)
    assert got.queries_without_relevant == sum(a.relevant == 0 for a in answers)
    (at,) = got.at
    assert at.k == k
    assert at.map_over_found == pytest.approx(slow.mean(a.over_found(k) for a in answers), **EXACT)
    assert at.map_over_possible == pytest.approx(slow.mean(a.over_possible(min(k, size)) for a in answers), **EXACT)
    assert at.precision == pytest.approx(slow.mean(a.precision(k) for a in answers), **EXACT)
    assert at.recall == pytest.approx(slow.mean(a.recall(k) for a in answers), **EXACT)


@settings(max_examples=100)
@given(retrievals(), st.integers(1, 40))
def test_the_range_under_ties_is_that_of_the_worst_and_the_best_order(arrays, k):
    last, first = (slow.answers(*arrays, ties=ties) for ties in ("relevant last", "relevant first"))
    got, size = measure_retrieval(*arrays, ks=[k]), len(arrays[1])
    for under_ties, cut in ((got.map_all_under_ties, size), (got.at[0].map_over_possible_under_ties, min(k, size))):
        assert under_ties.least == pytest.approx(slow.mean(a.over_possible(cut) for a in last), **EXACT)
        assert under_ties.most == pytest.approx(slow.mean(a.over_possible(cut) for a in first), **EXACT)
    assert got.map_all_under_ties.least - 1e-12 <= got.map_all <= got.map_all_under_ties.most + 1e-12


def test_no_order_of_ties_leaves_the_range():
    query, database, label = (
        np.zeros((1, 1), np.uint8),
        np.array([[1], [0], [1], [1], [1], [3]], np.uint8),
        np.array([1]),
    )
    labels = np.array([0, 1, 1, 0, 1, 1])
    for k in (2, 4, 6):
        at_k = [
            measure_retrieval(query, database[list(order)], label, labels[list(order)], ks=[k]).at[0]
            for order in itertools.permutations(range(6))
        ]
        under_ties = at_k[0].map_over_possible_under_ties
        assert min(at.map_over_possible for at in at_k) == pytest.approx(under_ties.least, **EXACT)
        assert max(at.map_over_possible for at in at_k) == pytest.approx(under_ties.most, **EXACT)
        assert under_ties.least < under_ties.most


@settings(max_examples=100)
@given(retrievals())
def test_precision_within_the_radius_and_the_curve_are_what_a_slow_obvious_loop_gives(arrays):
    answers = slow.answers(*arrays)
    got = measure_retrieval(*arrays)
    within = [a.within(LOOKUP_RADIUS) for a in answers]
    expected = slow.mean(slow.Fraction(sum(w), len(w)) if w else slow.Fraction(0) for w in within)
    assert got.within_radius.precision == pytest.approx(expected, **EXACT)
    assert got.within_radius.empty_queries == sum(not w for w in within)
    distances = [away for a in answers for away, _, _ in a.ranked]
    assert [point.radius for point in got.curve] == list(range(min(distances), max(distances) + 1))
    for point in got.curve:
        filled = [a.within(point.radius) for a in answers if a.within(point.radius)]
        assert point.precision == pytest.approx(slow.mean(slow.Fraction(sum(w), len(w)) for w in filled), **EXACT)
        recalls = [slow.Fraction(sum(a.within(point.radius)), a.relevant) for a in answers if a.relevant]
        assert point.recall == pytest.approx(slow.mean(recalls) if recalls else 0, **EXACT)


def test_the_two_normalisations_differ_where_relevant_images_are_missed():
    # Ranked: right, wrong, right; another right image is at rank 4.
    codes = np.array([[0], [1], [3], [7]], np.uint8)
    got = measure_retrieval(codes[:1], codes, np.array([1]), np.array([1, 0, 1, 1]), ks=[3])
    assert got.at[0].map_over_found == (1 + 2 / 3) / 2
    assert got.at[0].map_over_possible == pytest.approx((1 + 2 / 3) / 3)


def test_a_query_with_nothing_within_the_radius_counts_as_zero_and_is_counted():
    codes = np.array([[0b0], [0b11111111]], np.uint8)
    got = measure_retrieval(codes, codes[:1], np.array([1, 1]), np.array([1]))
    assert got.within_radius.precision == 0.5
    assert got.within_radius.empty_queries == 1


def test_memory_does_not_grow_with_the_database(monkeypatch):
    monkeypatch.setattr(evaluation_ranks, "_ROWS_AT_ONCE", 256)
    measure_retrieval(*random_arrays(8, 64))  # compiled before it is weighed
    peaks = []
    for size in (5_000, 50_000):
        arrays = random_arrays(8, size)
        tracemalloc.start()
        measure_retrieval(*arrays)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 8 * 50_000  # less than a byte for each similarity


def test_codes_and_labels_may_be_mapped_files(tmp_path):
    arrays = random_arrays(5, 300)
    mapped = []
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
        mapped.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    assert measure_retrieval(*mapped, ks=[10]) == measure_retrieval(*arrays, ks=[10])


def test_its_map_is_to_the_last_bit_that_of_mean_average_precision():
    arrays = random_arrays(20, 500)
    got = measure_retrieval(*arrays, ks=[7])
    assert got.map_all == mean_average_precision(*arrays)
    assert got.at[0].map_over_found == mean_average_precision(*arrays, topk=7)


def test_a_k_below_one_is_refused():
    with pytest.raises(InputError, match="topk = 0"):
        measure_retrieval(*random_arrays(2, 5), ks=[3, 0])


def distances_and_relevance(arrays):
    """(Q, N) each, in the order of the database."""
    query_codes, database_codes, query_labels, database_labels = arrays
    distances = np.array([[slow.distance(query, code) for code in database_codes] for query in query_codes])
    return distances, np.array([[slow.alike(query, label) for label in database_labels] for query in query_labels])


@settings(max_examples=40)
@given(retrievals())
def test_map_is_that_of_scikit_learn_over_ranks(arrays):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    distances, relevant = distances_and_relevance(arrays)
    rank = distances * len(arrays[1]) + np.arange(len(arrays[1]))  # (distance, row) as one number: no ties
    expected = [
        metrics.average_precision_score(alike, -ranks) if alike.any() else 0.0
        for alike, ranks in zip(relevant, rank, strict=True)
    ]
    assert measure_retrieval(*arrays).map_all == pytest.approx(np.mean(expected), abs=1e-9, rel=0)


def test_the_curve_of_one_query_is_that_of_scikit_learn_over_distances():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in range(5):
        arrays = [array[seed : seed + 1] if i % 2 == 0 else array for i, array in enumerate(random_arrays(5, 300))]
        distances, relevant = distances_and_relevance(arrays)
        precision, recall, thresholds = metrics.precision_recall_curve(relevant[0], -distances[0])
        expected = {int(-t): (p, r) for t, p, r in zip(thresholds, precision, recall, strict=False)}
        got = {point.radius: (point.precision, point.recall) for point in measure_retrieval(*arrays).curve}
        assert len(expected) > 10
        for radius, point in expected.items():
            assert got[radius] == pytest.approx(point, abs=1e-9, rel=0)


def test_map_precision_and_recall_are_those_of_torchmetrics_where_no_distances_tie():
    import torch
    from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision, RetrievalRecall

    random = np.random.default_rng(3)
    query_codes, database_codes, query_labels, database_labels = random_arrays(12, 400, width=16)
    query_labels[0] = 9  # a query that nothing is relevant to
    database_labels[random.random(400) < 0.5] = 7
    arrays = (query_codes, database_codes, query_labels, database_labels)
    scores, targets, queries = [], [], []
    for number, (answer, label) in enumerate(zip(slow.answers(*arrays), query_labels, strict=True)):
        rank_of_row = {row: rank for rank, (_, _, row) in enumerate(answer.ranked)}
        # Ties broken by our order; above 0, as torchmetrics takes no image scored 0 or less for relevant.
        scores += [float(len(database_codes) - rank_of_row[row]) for row in range(len(database_codes))]
        targets += (database_labels == label).tolist()
        queries += [number] * len(database_codes)
    given = (torch.tensor(scores, dtype=torch.float64), torch.tensor(targets), torch.tensor(queries))
    k = 25
    got = measure_retrieval(*arrays, ks=[k])
    expected = {
        "map_all": RetrievalMAP(empty_target_action="neg"),
        "map_over_found": RetrievalMAP(empty_target_action="neg", top_k=k),
        "precision": RetrievalPrecision(empty_target_action="neg", top_k=k),
        "recall": RetrievalRecall(empty_target_action="neg", top_k=k),
    }
    for name, metric in expected.items():
        ours = got.map_all if name == "map_all" else getattr(got.at[0], name)
        # torchmetrics adds up in float32.
        assert ours == pytest.approx(float(metric(given[0], given[1], indexes=given[2])), abs=1e-6), name
