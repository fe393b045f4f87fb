import numpy as np
import pytest

from dmsh_serving.codes import pack, unpack
from dmsh_serving.contract import PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming.nearest import search
from dmsh_serving.ranker.rerank import asymmetric_order


def candidates(seed, queries, codes, bits, k):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(queries, bits)).astype(np.float32)
    database = pack(random.integers(0, 2, (codes, bits)))
    distances, rows = search(pack(logits), database, k)
    return logits, database, distances, rows


@pytest.mark.parametrize("bits", [1, 7, 8, 12, 64, 100])
def test_the_order_inside_a_tie_is_that_of_the_weighted_distance_then_of_the_id(bits):
    logits, database, distances, rows = candidates(0, 5, 400, bits, 50)
    order = asymmetric_order(logits, database[rows], distances, rows)
    for query in range(5):
        differs = unpack(database[rows[query]], bits) != (logits[query] > 0)
        weighted = (differs * np.abs(logits[query].astype(np.float64))).sum(axis=1)
        assert np.array_equal(distances[query][order[query]], distances[query])  # they stay as they were
        for distance in np.unique(distances[query]):
            ids = rows[query][order[query]][distances[query] == distance]
            ranked = weighted[order[query]][distances[query] == distance]
            assert (np.diff(ranked) > -1e-9).all()
            assert (np.diff(ids)[np.abs(np.diff(ranked)) < 1e-12] > 0).all()


def test_equal_codes_stay_in_the_order_of_their_ids():
    logits = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    ids = np.array([[9, 4, 7, 1]] * 3)
    order = asymmetric_order(logits, np.zeros((3, 4, 8), np.uint8), np.full((3, 4), 30), ids)
    assert np.take_along_axis(ids, order, axis=1).tolist() == [[1, 4, 7, 9]] * 3


def test_a_bit_that_the_query_is_sure_of_counts_for_more():
    logits = np.array([[5.0, 0.1, -0.1, -0.2]], np.float32)  # code 1100
    codes = pack(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]]))  # weighted 5.0, 0.1 and 0.2
    assert asymmetric_order(logits, codes[None], np.array([[1, 1, 2]]), np.arange(3)[None]).tolist() == [[1, 0, 2]]


def test_the_answer_of_one_query_does_not_depend_on_the_batch():
    logits, database, distances, rows = candidates(2, 40, 500, 64, 60)
    together = asymmetric_order(logits, database[rows], distances, rows)
    for query in range(40):
        one = slice(query, query + 1)
        alone = asymmetric_order(logits[one], database[rows[one]], distances[one], rows[one])
        assert np.array_equal(alone[0], together[query])


def test_padding_stays_last_whatever_its_code():
    logits, database, distances, rows = candidates(3, 4, 6, 64, 9)
    codes = database[np.maximum(rows, 0)]
    codes[rows == PAD_ID] = pack(logits)[0]  # nearest of all to the first query
    ids = np.take_along_axis(rows, asymmetric_order(logits, codes, distances, rows), axis=1)
    assert (ids[:, 6:] == PAD_ID).all()
    assert (np.sort(ids[:, :6]) == np.arange(6)).all()


def test_what_does_not_fit_is_refused():
    logits, codes = np.ones((2, 16), np.float32), np.zeros((2, 3, 2), np.uint8)
    distances, ids = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int64)
    for bad, message in (
        ((logits[:1], codes, distances, ids), "must be"),
        ((logits, codes[:, :2], distances, ids), "must be"),
        ((logits, codes, distances[:, :2], ids), "must be"),
        ((logits, codes[:, :, :1], distances, ids), "16 bits must be uint8"),
        ((logits > 0, codes, distances, ids), "have no weights"),
        ((np.full((2, 16), np.nan, np.float32), codes, distances, ids), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            asymmetric_order(*bad)
