import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving.errors import InputError
from dmsh_serving.hamming import threads as hamming_threads
from dmsh_serving.hamming.oracle import search_radius_oracle
from dmsh_serving.hamming.radius import search_radius


def random_codes(seed, count, width, alphabet=256):
    return np.random.default_rng(seed).integers(0, alphabet, (count, width), dtype=np.uint8)


def assert_as_oracle(queries, codes, radius, threads=1, allowed=None):
    result = search_radius(queries, codes, radius, threads=threads, allowed=allowed)
    assert (result.offsets.dtype, result.distances.dtype, result.rows.dtype) == (np.int64, np.int32, np.int64)
    assert result.offsets[0] == 0
    assert result.offsets[-1] == len(result.rows) == len(result.distances)
    hits = search_radius_oracle(queries, codes, radius, allowed)
    assert len(result.offsets) == len(hits) + 1
    for query, (distances, rows) in enumerate(hits):
        found_distances, found_rows = result.of(query)
        assert np.array_equal(found_distances, distances)
        assert np.array_equal(found_rows, rows)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_radius_finds_what_the_oracle_finds(data):
    width = data.draw(st.sampled_from([1, 2, 3, 6, 8, 13, 16, 24, 32, 50, 128]), "width")
    count = data.draw(st.one_of(st.integers(0, 70), st.integers(0, 9000)), "count")
    alphabet = data.draw(st.sampled_from([1, 2, 3, 256]), "alphabet")
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    radius = data.draw(st.one_of(st.integers(0, 8 * width), st.just(5000)), "radius")
    queries = random_codes(seed + 1, data.draw(st.integers(0, 4), "queries"), width, alphabet)
    codes = random_codes(seed, count, width, alphabet)
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]), "allowed")
    allowed = None if share is None else np.random.default_rng(seed).random(count) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming_threads, "_WORTH_A_THREAD", 1)
        assert_as_oracle(queries, codes, radius, data.draw(st.sampled_from([1, 2, 3]), "threads"), allowed)


def test_many_queries_are_searched_in_several_batches():
    assert_as_oracle(random_codes(1, 150, 8), random_codes(2, 3000, 8), 24, threads=2)


def test_a_radius_of_zero_finds_the_equal_codes_alone():
    codes = np.array([[1], [0], [1], [3]], np.uint8)
    assert search_radius(np.array([[1]], np.uint8), codes, 0).rows.tolist() == [0, 2]


@pytest.mark.parametrize("width", [1, 8, 13, 128])
def test_a_complement_code_is_found_at_a_radius_of_all_bits_and_not_at_one_less(width):
    query, bits = random_codes(5, 1, width), 8 * width
    assert search_radius(query, ~query, bits - 1).rows.tolist() == []
    for radius in (bits, bits + 1, 2**40):
        found = search_radius(query, ~query, radius)
        assert (found.rows.tolist(), found.distances.tolist()) == ([0], [bits])


def test_no_queries_and_no_codes_find_nothing():
    assert search_radius(np.empty((0, 8), np.uint8), np.zeros((4, 8), np.uint8), 2).offsets.tolist() == [0]
    assert search_radius(np.zeros((2, 8), np.uint8), np.empty((0, 8), np.uint8), 2).offsets.tolist() == [0, 0, 0]


def test_a_negative_radius_is_refused():
    with pytest.raises(InputError, match="radius = -1"):
        search_radius(np.zeros((1, 8), np.uint8), np.zeros((4, 8), np.uint8), -1)


def test_queries_of_another_width_or_type_are_refused():
    codes = np.zeros((5, 8), np.uint8)
    with pytest.raises(InputError, match="4 bytes per code"):
        search_radius(codes[:1, :4], codes, 3)
    with pytest.raises(InputError, match="queries must be uint8"):
        search_radius(codes[:1].astype(np.int64), codes, 3)


def test_the_more_is_compared_the_more_threads_take_part(monkeypatch):
    asked = []
    monkeypatch.setattr("dmsh_serving.hamming.radius.worthwhile_threads", lambda threads, work: asked.append(work) or 1)
    search_radius(np.zeros((3, 8), np.uint8), np.ones((5, 8), np.uint8), 3)
    assert asked == [3 * 5 * 8]


CHANGING = """
import threading
import numpy as np
from dmsh_serving.hamming.radius import search_radius
codes, query, ended = np.full((400_000, 8), 255, np.uint8), np.zeros((1, 8), np.uint8), threading.Event()
def change():
    while not ended.is_set():
        codes[:] = 0
        codes[:] = 255
threading.Thread(target=change).start()
for _ in range(1500):
    search_radius(query, codes, 3, threads=2)
ended.set()
"""


def test_codes_that_another_thread_changes_meanwhile_damage_no_memory():
    run = subprocess.run([sys.executable, "-c", CHANGING], check=False, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
