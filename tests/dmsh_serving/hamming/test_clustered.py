import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming import clustered as clustered_codes
from dmsh_serving.hamming import layout as clustered_layout
from dmsh_serving.hamming.clustered import ClusteredCodes, cluster
from dmsh_serving.hamming.kernels.clustered import room_for
from dmsh_serving.hamming.layout import choose_layout
from dmsh_serving.hamming.oracle import search_oracle


def random_codes(seed, count, width, alphabet=256):
    return np.random.default_rng(seed).integers(0, alphabet, (count, width), dtype=np.uint8)


class Pair:
    """The same gallery clustered, and plain in the order of its ids, for the oracle."""

    def __init__(self, codes, ids, allowed_ids=None):
        self.clustered = cluster(codes, ids)
        by_id = np.argsort(ids)
        self.codes, self.ids = codes[by_id], ids[by_id]
        self.allowed = None if allowed_ids is None else np.isin(self.ids, allowed_ids)
        self.allowed_places = None if allowed_ids is None else np.isin(self.clustered.ids, allowed_ids)

    def assert_same_search(self, queries, k, threads=1):
        distances, places = self.clustered.search(queries, k, threads=threads, allowed=self.allowed_places)
        expected_distances, rows = search_oracle(queries, self.codes, k, self.allowed)
        assert np.array_equal(distances, expected_distances)
        assert np.array_equal(ids_at(self.clustered.ids, places), ids_at(self.ids, rows))


def ids_at(ids, places):
    return np.where(places == PAD_ID, PAD_ID, np.append(ids, 0)[places])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_gallery_gives_clustered_what_it_gives_plain(data):
    width = data.draw(st.sampled_from([1, 2, 3, 6, 8, 13, 16, 24, 32, 50, 128]), "width")
    count = data.draw(st.one_of(st.integers(0, 70), st.integers(0, 6000)), "count")
    alphabet = data.draw(st.sampled_from([1, 2, 3, 256]), "alphabet")
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    random = np.random.default_rng(seed)
    ids = random.permutation(3 * count + 1)[:count]  # groups interleave, and ids are not in the order of rows
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]), "allowed")
    allowed = None if share is None else ids[random.random(count) < share]
    pair = Pair(random_codes(seed, count, width, alphabet), ids, allowed)
    queries = random_codes(seed + 1, data.draw(st.integers(0, 4), "queries"), width, alphabet)
    threads = data.draw(st.sampled_from([1, 2, 3]), "threads")
    pair.assert_same_search(queries, data.draw(st.one_of(st.integers(1, 20), st.integers(1, count + 10)), "k"), threads)


def clusters(seed, count, centres):
    """Codes of 64 bits near a few centres, as those of a trained model are."""
    random = np.random.default_rng(seed)
    flips = np.packbits(random.random((count, 64)) < 0.02, axis=1)
    return random_codes(seed, centres, 8)[random.integers(0, centres, count)] ^ flips


def test_codes_that_cluster_are_searched_exactly_and_mostly_skipped():
    codes = clusters(0, 60_000, 10)
    pair = Pair(codes, np.random.default_rng(1).permutation(60_000))
    queries = clusters(0, 300, 10)[-20:]
    for k in (1, 10, 1000, 16_384):
        pair.assert_same_search(queries, k, threads=2)
    work = pair.clustered.measured_search(queries, 10)[2]
    assert work.visited < 0.3 * work.buckets * len(queries)


def test_ids_of_several_groups_interleave_and_the_cut_takes_the_smallest():
    codes = np.array([[1], [2], [4], [1], [2], [4], [8]], np.uint8)  # all at distance 1 of 0
    clustered = cluster(codes, np.array([60, 50, 40, 30, 20, 10, 35]))
    distances, places = clustered.search(np.array([[0]], np.uint8), 5)
    assert clustered.ids[places].tolist() == [[10, 20, 30, 35, 40]]
    assert distances.tolist() == [[1] * 5]


def test_a_filter_inside_one_large_group_takes_the_smallest_allowed_ids():
    clustered = cluster(np.zeros((5000, 8), np.uint8), np.arange(5000))
    allowed = np.zeros(5000, np.bool_)
    allowed[[4999, 3000, 1234]] = True
    distances, places = clustered.search(np.zeros((1, 8), np.uint8), 4, allowed=allowed)
    assert clustered.ids[places[0, :3]].tolist() == [1234, 3000, 4999]
    assert distances[0].tolist() == [0, 0, 0, PAD_DISTANCE]


@pytest.mark.parametrize(
    ("largest", "width"), [(2**31 - 1, np.int32), (2**31, np.int64), (2**32 + 5, np.int64), (2**63 - 1, np.int64)]
)
@pytest.mark.parametrize("share", [None, 0.3])
def test_ids_of_either_width_are_searched_exactly_up_to_the_largest(largest, width, share):
    random = np.random.default_rng(7)
    ids = largest - 1 - random.permutation(6000)[:3000]
    ids[0] = largest
    codes = random_codes(8, 3000, 2, alphabet=4)  # 16 different codes: answers are cut among equal distances
    pair = Pair(codes, ids, None if share is None else ids[random.random(3000) < share])
    assert pair.clustered.ids.dtype == width
    assert pair.clustered.starts.dtype == np.int32
    queries = random_codes(9, 5, 2, alphabet=4)
    for k in (1, 100, 2999, 3100):
        pair.assert_same_search(queries, k, threads=2)


@pytest.mark.parametrize("k", [1, 10, 2000])
@pytest.mark.parametrize("share", [None, 0.5])
def test_more_codes_at_the_kth_distance_than_a_search_remembers_give_the_smallest_ids(k, share):
    random = np.random.default_rng(k)
    values = np.arange(1 << 16)
    ones = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1)
    codes = values[ones == 8].astype(">u2").view(np.uint8).reshape(-1, 2)  # all 12,870 are at distance 8 of 0
    nearer = np.array([[0, 1], [0, 3], [1, 3]], np.uint8)
    codes = np.concatenate([codes, codes[::2], nearer])[random.permutation(len(codes) + len(codes) // 2 + 3)]
    ids = random.permutation(3 * len(codes))[: len(codes)]
    pair = Pair(codes, ids, None if share is None else ids[random.random(len(ids)) < share])
    assert len(pair.clustered.codes) > 2 * room_for(len(pair.clustered.codes), k)
    pair.assert_same_search(np.zeros((3, 2), np.uint8), k)


@pytest.mark.parametrize("allowed_count", [0, 1, 5, 200, 900])
@pytest.mark.parametrize("queries", [1, 7, 8, 40])
def test_a_filter_that_leaves_few_is_searched_exactly_however_many_queries_share_it(allowed_count, queries):
    random = np.random.default_rng(allowed_count)
    codes, ids = clusters(4, 60_000, 10), 2**31 - 10 + random.permutation(60_000)
    pair = Pair(codes, ids, random.permutation(ids)[:allowed_count])
    for k in (1, 10, 300):
        pair.assert_same_search(codes[:queries], k, threads=2)


def test_for_several_queries_only_the_few_codes_that_a_filter_leaves_are_compared():
    clustered = cluster(clusters(4, 60_000, 10), np.arange(60_000))
    for count, few in ((300, True), (600, False)):
        allowed = np.zeros(60_000, np.bool_)
        allowed[100 * np.arange(count)] = True
        work = clustered.measured_search(clustered.codes[:8], 10, allowed=allowed)[2]
        assert (work.visited == 0) == few


@pytest.mark.parametrize("first", [0, 1, 62, 63, 64, 65, 1000])
def test_a_filter_is_exact_at_the_edges_of_its_words_of_64_flags(first):
    count = first + 130
    codes = np.repeat(np.arange(3, dtype=np.uint8), [first, 129, 1])[:, None]
    for kept in ({first}, {first + 63}, {first + 64}, {first + 128}, {count - 1}, {first, first + 127}, set()):
        pair = Pair(codes, np.arange(count), sorted(kept))
        for k in (1, 2, 5):
            pair.assert_same_search(np.array([[1]], np.uint8), k)


def test_what_is_held_and_what_a_search_takes_besides_is_small():
    count = 500_000
    codes = random_codes(5, count, 8)  # all different: the layout's worst case
    ids = np.random.default_rng(6).permutation(count)
    clustered = cluster(codes, ids)
    held = clustered.codes.nbytes + clustered.starts.nbytes + clustered.ids.nbytes
    assert held <= 1.01 * (codes.nbytes + ids.nbytes)  # int64 starts and ids: 1.5
    query = np.zeros((1, 8), np.uint8)
    clustered.search(query, 10)  # compiles
    tracemalloc.start()
    again = ClusteredCodes(clustered.codes, clustered.starts, clustered.ids)
    again.search(query, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held + peak <= 1.1 * (codes.nbytes + ids.nbytes)  # 32 bytes a code for candidates: 3


def test_more_codes_than_can_be_numbered_are_left_plain(monkeypatch):
    monkeypatch.setattr(clustered_layout, "MAX_PLACES", 29_999)
    monkeypatch.setattr(clustered_codes, "MAX_PLACES", 29_999)
    codes = clusters(3, 30_000, 10)
    assert choose_layout(codes).layout == "plain"
    assert choose_layout(codes[1:]).layout == "clustered"
    with pytest.raises(InputError, match="30000 codes are too many"):
        cluster(codes, np.arange(30_000))


def test_equal_codes_are_stored_once_sorted_with_their_ids_ascending():
    clustered = cluster(np.array([[2, 0], [0, 9], [2, 0], [0, 1]], np.uint8), np.array([7, 5, 3, 1]))
    assert clustered.codes.tolist() == [[0, 1], [0, 9], [2, 0]]
    assert clustered.starts.tolist() == [0, 1, 2, 4]
    assert clustered.ids.tolist() == [1, 5, 3, 7]


def test_ids_that_begin_with_the_smallest_but_do_not_ascend_are_brought_into_order():
    clustered = cluster(np.array([[1, 1]] * 4, np.uint8), np.array([2, 9, 7, 8]))
    assert clustered.ids.tolist() == [2, 7, 8, 9]


def test_the_layout_follows_from_the_codes_and_says_why():
    learned = choose_layout(clusters(3, 50_000, 10))
    assert learned.layout == "clustered"
    assert learned.work < 0.5
    assert f"{learned.distinct:,} of 50,000 codes are different" in learned.reason
    uniform = choose_layout(random_codes(4, 50_000, 8))
    assert (uniform.layout, uniform.distinct) == ("plain", 50_000)
    assert uniform.work > 0.5
    few = choose_layout(np.zeros((100, 8), np.uint8))
    assert (few.layout, few.distinct, few.work) == ("plain", 1, None)
    assert choose_layout(np.empty((0, 8), np.uint8)).distinct == 0


def test_the_layout_is_the_same_each_time():
    codes = clusters(3, 30_000, 10)
    assert choose_layout(codes) == choose_layout(codes.copy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 8), np.int8)}, "contiguous"),
        ({"codes": np.zeros((2, 16), np.uint8)[:, ::2]}, "contiguous"),
        ({"ids": np.zeros(3, np.uint32)}, "contiguous"),
        ({"starts": np.array([0, 1, 3])}, "contiguous"),
        ({"starts": np.array([0, 3], np.int32)}, "must go from 0 to 3 in 3 steps"),
        ({"starts": np.array([0, 1, 4], np.int32)}, "must go from 0 to 3"),
        ({"starts": np.array([0, 0, 3], np.int32)}, "must ascend"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change, message):
    good = {"codes": np.zeros((2, 8), np.uint8), "starts": np.array([0, 1, 3], np.int32), "ids": np.arange(3)}
    ClusteredCodes(**good)
    with pytest.raises(InputError, match=message):
        ClusteredCodes(**good | change)


def test_queries_k_and_masks_are_checked_as_in_a_plain_search():
    clustered = cluster(np.zeros((5, 8), np.uint8), np.arange(5))
    query = np.zeros((1, 8), np.uint8)
    for call, message in (
        (lambda: clustered.search(query, 0), "k = 0"),
        (lambda: clustered.search(query[:, :4], 1), "4 bytes per code"),
        (lambda: clustered.search(query, 1, allowed=np.ones(4, np.bool_)), "allowed must be bool"),
        (lambda: clustered.search(query, 1, threads=0), "threads = 0"),
        (lambda: cluster(np.zeros((5, 8), np.uint8), np.arange(4)), "give codes uint8"),
        (lambda: cluster(np.zeros((5, 8), np.uint8), np.arange(5, dtype=np.int32)), "give codes uint8"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("ids", "why"), [([3, 1, 3], "more than once"), ([1, 1, 3], "more than once"), ([2, -1, 0], "id -1 is negative")]
)
def test_ids_that_could_not_be_told_apart_are_refused(ids, why):
    with pytest.raises(InputError, match=why):
        cluster(np.zeros((3, 2), np.uint8), np.array(ids, np.int64))
