import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving.contract import MAX_K, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming import nearest as hamming
from dmsh_serving.hamming import threads as hamming_threads
from dmsh_serving.hamming.kernels import batches as hamming_batches
from dmsh_serving.hamming.kernels.memory import new_record
from dmsh_serving.hamming.kernels.scan import SCAN_JOB
from dmsh_serving.hamming.kernels.vectors import kernel_for
from dmsh_serving.hamming.nearest import search
from dmsh_serving.hamming.oracle import search_oracle

WIDTHS = [*range(1, 41), 128]


def random_codes(seed, count, width, alphabet=256):
    """A small alphabet gives few distinct distances, hence many ties."""
    return np.random.default_rng(seed).integers(0, alphabet, (count, width), dtype=np.uint8)


def assert_as_oracle(queries, codes, k, threads=1, allowed=None):
    distances, rows = search(queries, codes, k, threads=threads, allowed=allowed)
    assert (distances.dtype, rows.dtype) == (np.int32, np.int64)
    expected_distances, expected_rows = search_oracle(queries, codes, k, allowed)
    assert np.array_equal(distances, expected_distances)
    assert np.array_equal(rows, expected_rows)


@pytest.fixture
def split_eagerly(monkeypatch):
    """Let even a tiny search use the threads it is given."""
    monkeypatch.setattr(hamming_threads, "_WORTH_A_THREAD", 1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_width_finds_what_the_oracle_finds(width, threads, split_eagerly):
    for count in (0, 1, 2, 9, 300):
        codes, queries = random_codes(width, count, width), random_codes(99, 3, width)
        for k in sorted({1, 2, max(count, 1), count + 3}):
            assert_as_oracle(queries, codes, k, threads)
        assert_as_oracle(queries, codes, 5, threads, allowed=random_codes(98, count, 1, 3)[:, 0] == 0)


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
    share = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]), "allowed")
    allowed = None if share is None else np.random.default_rng(seed).random(count) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming_threads, "_WORTH_A_THREAD", 1)
        assert_as_oracle(queries, codes, k, data.draw(st.sampled_from([1, 2, 3]), "threads"), allowed)


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


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [1, 2, 3, 8, 13, 32, 100, 128])
def test_a_search_that_begins_at_a_guessed_cut_finds_what_the_oracle_finds(width, threads, split_eagerly):
    assert_as_oracle(random_codes(3, 3, width), random_codes(4, 40_000, width), 300, threads)


@pytest.mark.parametrize("groups", [5, 8, 9, 13, 24])
def test_a_guessed_cut_is_rarely_too_low_whatever_the_size_of_its_sample(groups):
    """A guess that is too low costs a second scan; codes of 32 bytes have distances fine enough to show it."""
    k, width = 300, 32
    codes, queries = random_codes(1, 4 * k * groups + 50, width), random_codes(2, 100, width)
    kernel, cuts = kernel_for(width), np.empty(len(queries), np.int64)
    job = new_record(
        SCAN_JOB,
        kernel=kernel.record_for(1),
        codes=codes.ctypes.data,
        width=width,
        count=len(codes),
        queries=queries.ctypes.data,
        query_count=len(queries),
        k=k,
        levels=8 * width + 1,
    )
    hamming_batches._first_cuts(job[0], cuts, True)
    assert (cuts < 8 * width).all()  # guessed
    farthest = search(queries, codes, k)[0][:, -1]
    assert (farthest >= cuts).mean() <= 0.04


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("near", [250, 299, 300, 301])
def test_a_sample_that_is_nearer_than_the_rest_costs_no_answer(near, threads, split_eagerly):
    """The first rows are among the sample: it promises far more near codes than there are, or one too few of the k."""
    codes = random_codes(4, 40_000, 8) | 1
    codes[:near] = 0
    assert_as_oracle(np.zeros((2, 8), np.uint8), codes, 300, threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [8, 13])
def test_queries_whose_sample_misleads_are_answered_beside_those_whose_sample_does_not(width, threads, split_eagerly):
    codes = random_codes(4, 40_000, width)
    codes[:250] = 0
    queries = random_codes(5, 140, width)  # more than a scan takes
    queries[[0, 3, 4, 127, 128, 139]] = 0
    assert_as_oracle(queries, codes, 300, threads)


@pytest.mark.parametrize("width", [8, 13])
def test_many_queries_are_searched_in_several_scans(width):
    assert_as_oracle(random_codes(5, 300, width), random_codes(6, 5000, width), 5, threads=2)


@pytest.mark.slow
@pytest.mark.parametrize("width", [*WIDTHS, 57, 100])  # of both slots beyond 32 bytes that words are left out of
@pytest.mark.parametrize("count", [1, 63, 64, 4096, 5003])
def test_many_queries_which_read_codes_in_columns_find_what_the_oracle_finds(width, count):
    codes = random_codes(width, count, width)
    allowed = random_codes(98, count, 1, 2)[:, 0] == 0
    assert_as_oracle(random_codes(99, 9, width), codes, 20)
    assert_as_oracle(random_codes(99, 9, width), codes, 20, allowed=allowed)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 3, 6, 13, 16, 100, 127])
@pytest.mark.parametrize("queries", [1, 9])
def test_nothing_beyond_the_codes_is_read(width, queries):
    """Codes end where the readable memory does: reading on would end the process."""
    code = (
        "import ctypes, mmap\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming.nearest import search\n"
        "from dmsh_serving.hamming.radius import search_radius\n"
        f"width, count = {width}, 9000\n"
        "size = -(-count * width // mmap.PAGESIZE) * mmap.PAGESIZE\n"
        "memory = mmap.mmap(-1, size + mmap.PAGESIZE)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "protect = ctypes.CDLL(None, use_errno=True).mprotect\n"
        "protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "assert protect(start + size, mmap.PAGESIZE, 0) == 0\n"
        "codes = np.frombuffer(memory, np.uint8, count * width, size - count * width).reshape(count, width)\n"
        "for rows in (count, count - 1, 4096, 63, 1):\n"
        f"    search(codes[:{queries}], codes[-rows:], 500 if rows == count else 5)\n"
        f"    search_radius(codes[:{queries}], codes[-rows:], 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_scratch_memory_is_bounded_however_many_queries_and_results_are_asked_for(threads, monkeypatch, split_eagerly):
    monkeypatch.setattr(hamming, "_CANDIDATE_BYTES", 5000)  # one or two queries a scan
    assert_as_oracle(random_codes(5, 9, 8), random_codes(6, 5000, 8), 50, threads)


def test_only_allowed_rows_are_found_even_where_all_others_are_nearer():
    codes = np.zeros((30_000, 8), np.uint8)
    codes[[17, 20_000, 29_999]] = 255
    allowed = np.zeros(30_000, np.bool_)
    allowed[[17, 20_000, 29_999]] = True
    distances, rows = search(np.zeros((1, 8), np.uint8), codes, 4, allowed=allowed)
    assert distances.tolist() == [[64, 64, 64, PAD_DISTANCE]]
    assert rows.tolist() == [[17, 20_000, 29_999, PAD_ID]]


def test_a_strided_mask_is_taken_as_it_is():
    mask = np.zeros((600, 2), np.bool_)
    mask[::3, 1] = True
    assert_as_oracle(random_codes(1, 2, 8), random_codes(2, 600, 8), 9, allowed=mask[:, 1])


def test_threads_that_search_at_once_do_not_disturb_each_other(split_eagerly):
    codes, queries = random_codes(1, 20_000, 8), random_codes(2, 6, 8)
    expected = search_oracle(queries, codes, 10)

    def ask(index):
        return all(
            np.array_equal(found, wanted)
            for _ in range(30)
            for found, wanted in zip(search(queries, codes, 10, threads=1 + index % 3), expected, strict=True)
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(6)))


def test_threads_that_make_a_process_first_search_at_once_all_get_their_answer():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming.nearest import search\n"
        "codes = np.zeros((300_000, 8), np.uint8)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    found = list(pool.map(lambda _: search(codes[:1], codes, 2, threads=2)[1].tolist(), range(8)))\n"
        "assert found == [[[0, 1]]] * 8, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_helpers_that_fell_asleep_are_woken(split_eagerly):
    codes, queries = random_codes(1, 200_000, 8), random_codes(2, 1, 8)
    for _ in range(5):
        assert_as_oracle(queries, codes, 10, threads=3)
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_searches_with_helpers_of_its_own():
    code = (
        "import os\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming.nearest import search\n"
        "codes = np.zeros((1_000_000, 8), np.uint8)\n"
        "def ask(): return search(codes[:1], codes, 2, threads=2)[1].tolist()\n"
        "assert ask() == [[0, 1]]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if ask() == [[0, 1]] else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86-64")
def test_code_compiled_for_avx2_alone_finds_the_same(tmp_path):
    """What most CPUs of before 2022 run: no 512-bit vectors and no population count of vectors."""
    code = (
        "import numpy as np\n"
        "from dmsh_serving.hamming.kernels import vectors\n"
        "from dmsh_serving.hamming.nearest import search\n"
        "from dmsh_serving.hamming.oracle import search_oracle\n"
        "random = np.random.default_rng(0)\n"
        "for width, count in ((6, 9), (6, 3), (8, 9), (13, 9), (13, 3)):\n"  # few queries read rows, many columns
        "    codes = random.integers(0, 256, (5000, width), dtype=np.uint8)\n"
        "    queries = random.integers(0, 256, (count, width), dtype=np.uint8)\n"
        "    allowed = random.random(5000) < 0.3\n"
        "    for mask in (None, allowed):\n"
        "        found = search(queries, codes, 9, allowed=mask)\n"
        "        for got, wanted in zip(found, search_oracle(queries, codes, 9, mask)):\n"
        "            assert np.array_equal(got, wanted), (width, count, mask is None)\n"
        "assembly = vectors._compiled_block(8, False)[0]._library.get_asm_str()\n"
        "assert 'ymm' in assembly and 'zmm' not in assembly and 'vpopcnt' not in assembly\n"
    )
    haswell = "+avx,+avx2,+bmi,+bmi2,+fma,+popcnt,+sse4.2,+ssse3"
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": haswell,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


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
        "from dmsh_serving.hamming.nearest import search\n"
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
        "        search(np.ones((1, width), np.uint8), codes, 3, allowed=codes[:, 0] == 0)\n"
        "        mask = codes.reshape(-1)[:count].view(np.bool_)\n"
        "        search(np.ones((1, width), np.uint8), codes.copy(), 3, allowed=mask)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("queries", "codes", "k", "message"),
    [
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), 0, "k = 0 is out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), -1, "k = -1 is out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), MAX_K + 1, "out of range"),
        (np.zeros((1, 8), np.uint8), np.zeros((5, 4), np.uint8), 1, "8 bytes per code but the codes have 4"),
        (np.zeros((1, 8), np.int8), np.zeros((5, 8), np.uint8), 1, "queries must be uint8"),
        (np.zeros((1, 8), np.uint8), np.zeros(8, np.uint8), 1, "codes must be uint8"),
        (np.zeros((1, 8, 1), np.uint8), np.zeros((5, 8), np.uint8), 1, "queries must be uint8"),
        (np.zeros((1, 129), np.uint8), np.zeros((5, 129), np.uint8), 1, "129 bytes"),
        (np.zeros((1, 0), np.uint8), np.zeros((5, 0), np.uint8), 1, "0 bytes"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(queries, codes, k, message):
    with pytest.raises(InputError, match=message):
        search(queries, codes, k)


@pytest.mark.parametrize("allowed", [np.ones(4, np.bool_), np.ones((5, 1), np.bool_), np.ones(5, np.uint8)])
def test_a_mask_of_another_shape_or_dtype_is_refused(allowed):
    with pytest.raises(InputError, match=r"allowed must be bool \[5\]"):
        search(np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), 1, allowed=allowed)


def test_zero_threads_are_refused():
    with pytest.raises(InputError, match="threads = 0"):
        search(np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), 1, threads=0)


def test_importing_the_search_does_not_import_numba():
    code = "import sys, dmsh_serving.hamming.nearest; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_it_compiles_where_no_cache_folder_can_be_written():
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from dmsh_serving.hamming.nearest import search\n"
        "assert search(np.zeros((1, 8), np.uint8), np.zeros((3, 8), np.uint8), 2)[1].tolist() == [[0, 1]]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("changes", [{"k": 2.0}, {"k": "3"}, {"threads": 2.0}])
def test_numbers_that_are_not_whole_are_refused(changes):
    with pytest.raises(InputError, match=r"k = |threads = "):
        search(np.zeros((1, 8), np.uint8), np.zeros((5, 8), np.uint8), **{"k": 1, **changes})
