import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving import hamming_inputs
from dmsh_serving.contract import MAX_K, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming import search
from dmsh_serving.hamming_oracle import search_oracle

WIDTHS = [*range(1, 41), 128]


def random_codes(seed, count, width, alphabet=256):
    """A small alphabet gives few distinct distances, hence many ties."""
    return np.random.default_rng(seed).integers(0, alphabet, (count, width), dtype=np.uint8)


def assert_as_oracle(queries, codes, k, threads=1):
    distances, rows = search(queries, codes, k, threads=threads)
    assert (distances.dtype, rows.dtype) == (np.int32, np.int64)
    expected_distances, expected_rows = search_oracle(queries, codes, k)
    assert np.array_equal(distances, expected_distances)
    assert np.array_equal(rows, expected_rows)


@pytest.fixture
def split_eagerly(monkeypatch):
    """Let even a tiny search use the threads it is given."""
    monkeypatch.setattr(hamming_inputs, "_WORTH_A_THREAD", 1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_width_finds_what_the_oracle_finds(width, threads, split_eagerly):
    for count in (0, 1, 2, 9, 300):
        codes, queries = random_codes(width, count, width), random_codes(99, 3, width)
        for k in sorted({1, 2, max(count, 1), count + 3}):
            assert_as_oracle(queries, codes, k, threads)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_search_finds_what_the_oracle_finds(data):
    width = data.draw(st.sampled_from(WIDTHS), "width")
    count = data.draw(st.one_of(st.integers(0, 40), st.integers(0, 9000)), "count")
    alphabet = data.draw(st.sampled_from([1, 2, 3, 256]), "alphabet")
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    k = data.draw(st.one_of(st.integers(1, 20), st.integers(1, count + 10)), "k")
    queries = random_codes(seed + 1, data.draw(st.integers(0, 5), "queries"), width, alphabet)
    codes = random_codes(seed, count, width, alphabet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming_inputs, "_WORTH_A_THREAD", 1)
        assert_as_oracle(queries, codes, k, data.draw(st.sampled_from([1, 2, 3]), "threads"))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 10, 5000, 20_000])
def test_equal_codes_come_in_row_order(k, threads, split_eagerly):
    codes = np.zeros((9000, 8), np.uint8)
    assert_as_oracle(np.ones((2, 8), np.uint8), codes, min(k, MAX_K), threads)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_codes_that_come_ever_nearer_replace_all_earlier_candidates(k):
    """The worst order for a running cut: every code is a new candidate, so buffers are compacted again and again."""
    bits = (np.arange(64) < np.linspace(64, 0, 20_000)[:, None].astype(int)).astype(np.uint8)
    assert_as_oracle(np.zeros((1, 8), np.uint8), np.packbits(bits, axis=1), k)


def test_ties_at_the_cut_keep_the_lowest_rows_across_blocks_and_threads(split_eagerly):
    codes = random_codes(3, 20_000, 1, 2)  # distances 0 and 1 alone
    for threads in (1, 2, 3):
        assert_as_oracle(np.array([[0], [1], [255]], np.uint8), codes, 700, threads)


def test_many_queries_are_searched_in_several_scans():
    assert_as_oracle(random_codes(5, 150, 8), random_codes(6, 5000, 8), 5, threads=2)


def test_the_largest_k_is_exact():
    assert_as_oracle(random_codes(7, 2, 4), random_codes(8, 40_000, 4), MAX_K, threads=2)


def test_beyond_the_gallery_comes_the_documented_padding():
    distances, rows = search(np.zeros((1, 2), np.uint8), np.array([[0, 1]], np.uint8), 3)
    assert distances.tolist() == [[1, PAD_DISTANCE, PAD_DISTANCE]]
    assert rows.tolist() == [[0, PAD_ID, PAD_ID]]


def test_no_queries_give_an_empty_answer():
    distances, rows = search(np.empty((0, 8), np.uint8), np.zeros((4, 8), np.uint8), 2)
    assert distances.shape == rows.shape == (0, 2)


@pytest.mark.parametrize("width", [3, 8, 13])
def test_read_only_mapped_unaligned_and_strided_arrays_are_searched_alike(width, tmp_path):
    codes = random_codes(1, 600, width)
    queries = random_codes(2, 3, width)
    np.save(tmp_path / "codes.npy", codes)
    unaligned = np.frombuffer(b"x" + codes.tobytes(), np.uint8, offset=1).reshape(codes.shape)
    wide = np.zeros((1200, width + 3), np.uint8)
    wide[::2, 1:-2] = codes
    for form in (np.load(tmp_path / "codes.npy", mmap_mode="r"), unaligned, wide[::2, 1:-2], np.asfortranarray(codes)):
        assert_as_oracle(queries, form, 9)
    assert_as_oracle(np.asfortranarray(queries), codes, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
def test_nothing_outside_the_codes_is_read():
    """The pages before and after the codes are unreadable: a stray read would kill the process."""
    code = (
        "import ctypes, mmap\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming import search\n"
        "page = mmap.PAGESIZE\n"
        "memory = mmap.mmap(-1, 3 * page)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "libc = ctypes.CDLL(None)\n"
        "for guard in (address, address + 2 * page):\n"
        "    assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0\n"
        "for width in (1, 2, 3, 5, 7, 8, 9, 13, 16, 32, 40, 128):\n"
        "    count = page // width\n"
        "    for offset in (page, 2 * page - count * width):\n"
        "        codes = np.frombuffer(memory, np.uint8, count * width, offset).reshape(count, width)\n"
        "        search(np.ones((1, width), np.uint8), codes, 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("queries", "codes", "k", "message"),
    [
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), 0, "k = 0 is out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), -1, "k = -1 is out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), MAX_K + 1, "out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 4), np.uint8), 1, "8 bytes a code but the codes have 4"),
        (np.zeros((1, 8), np.int8), np.zeros((5, 8), np.uint8), 1, "queries must be uint8"),
        (np.zeros((1, 8), np.uint8), np.zeros(8, np.uint8), 1, "codes must be uint8"),
        (np.zeros((1, 129), np.uint8), np.zeros((5, 129), np.uint8), 1, "129 bytes"),
        (np.zeros((1, 0), np.uint8), np.zeros((5, 0), np.uint8), 1, "0 bytes"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(queries, codes, k, message):
    with pytest.raises(InputError, match=message):
        search(queries, codes, k)


def test_zero_threads_are_refused():
    with pytest.raises(InputError, match="threads = 0"):
        search(np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), 1, threads=0)


def test_importing_the_search_does_not_import_numba():
    code = "import sys, dmsh_serving.hamming; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_compiles_where_no_cache_folder_can_be_written():
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming import search\n"
        "assert search(np.zeros((1, 8), np.uint8), np.zeros((3, 8), np.uint8), 2)[1].tolist() == [[0, 1]]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
