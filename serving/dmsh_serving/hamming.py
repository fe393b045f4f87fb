"""Exact Hamming search over packed codes: ordered by (distance, row), always, for any thread count.

The compiled part is :mod:`dmsh_serving.hamming_kernel`, the slow obvious twin :mod:`dmsh_serving.hamming_oracle`.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming_inputs import Mask, available_cpus, check_codes_and_queries, checked_mask, checked_threads
from dmsh_serving.hamming_radius import RadiusResult, search_radius

__all__ = ["RadiusResult", "available_cpus", "search", "search_radius"]

Distances = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_QUERIES_A_SCAN = 64  # bounds the candidate buffers of one scan (20 MiB at the largest k)
_WORTH_A_THREAD = 1 << 20  # bytes of codes to compare; below, handing over costs more than it saves


def search(
    queries: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    k: int,
    *,
    threads: int | None = None,
    allowed: Mask | None = None,
) -> tuple[Distances, Rows]:
    """Return the k nearest codes of every query.

    Args:
        queries: (Q, B) uint8, packed; Q may be 0.
        codes: (N, B) uint8, packed, 1 <= B <= 128; N may be 0. Read-only and memory-mapped arrays are searched
            in place; rows that are not contiguous are copied first.
        k: results a query, 1 to ``contract.MAX_K``.
        threads: at most so many; None takes the CPUs this process may use. The answer does not depend on it.
        allowed: (N,) bool, the rows that may be found; None for all.

    Returns:
        distances (Q, k) int32 and rows (Q, k) int64, ordered by (distance, row) ascending. Where k exceeds N
        the rest is distance ``contract.PAD_DISTANCE``, row ``contract.PAD_ID``.

    Raises:
        InputError: a dtype, shape, k or thread count other than the above.
    """
    check_codes_and_queries(queries, codes)
    checked_k(k)
    threads = checked_threads(threads)
    allowed = checked_mask(allowed, len(codes))
    if allowed is not None:
        from dmsh_serving.hamming_oracle import search_oracle

        return search_oracle(queries, codes, k, allowed)
    distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
    rows = np.full((len(queries), k), PAD_ID, np.int64)
    if len(codes) == 0 or len(queries) == 0:
        return distances, rows
    codes = np.ascontiguousarray(codes)
    padded = padded_queries(queries)
    parts = max(1, min(threads, len(queries) * codes.size // _WORTH_A_THREAD))
    if parts <= len(queries):
        _scan_split_queries(padded, codes, parts, distances, rows)
    else:
        _scan_split_codes(padded, codes, parts, distances, rows)
    return distances, rows


def padded_queries(queries: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return queries (Q, B) as contiguous rows padded with zero bytes to a multiple of 8, as the kernel reads them."""
    count, width = queries.shape
    padded = np.zeros((count, (width + 7) // 8 * 8), np.uint8)
    padded[:, :width] = queries
    return padded


def _scan_split_queries(
    padded: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], parts: int, distances: Distances, rows: Rows
) -> None:
    """Give every thread some of the queries and all of the codes."""
    size = min(_QUERIES_A_SCAN, -(-len(padded) // parts))
    slices = [slice(start, start + size) for start in range(0, len(padded), size)]
    _in_parallel(
        parts,
        [functools.partial(_scan, padded[part], codes, 0, len(codes), distances[part], rows[part]) for part in slices],
    )


def _scan_split_codes(
    padded: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], parts: int, distances: Distances, rows: Rows
) -> None:
    """Give every thread some of the codes and all of the queries (fewer than threads), then merge."""
    from dmsh_serving.hamming_kernel import counting_sort

    edges = np.linspace(0, len(codes), parts + 1).astype(np.int64).tolist()
    part_distances = np.full((parts, *distances.shape), PAD_DISTANCE, np.int32)
    part_rows = np.full((parts, *rows.shape), PAD_ID, np.int64)
    _in_parallel(
        parts,
        [
            functools.partial(_scan, padded, codes, edges[i], edges[i + 1], part_distances[i], part_rows[i])
            for i in range(parts)
        ],
    )
    place = np.empty(8 * codes.shape[1] + 1, np.int64)
    for query in range(len(padded)):
        found = part_rows[:, query] != PAD_ID
        # Parts lie in row order, so within equal distances their candidates do too: a stable sort is enough.
        candidates = np.ascontiguousarray(part_distances[:, query][found])
        candidate_rows = np.ascontiguousarray(part_rows[:, query][found])
        counting_sort(candidates, candidate_rows, len(candidates), place, distances[query], rows[query])


def _scan(
    padded: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    start: int,
    stop: int,
    distances: Distances,
    rows: Rows,
) -> None:
    from dmsh_serving.hamming_kernel import scan

    width, stride = codes.shape[1], padded.shape[1]
    scan(codes.ctypes.data, width, start, stop, padded.ctypes.data, stride, distances, rows)


def _in_parallel(threads: int, tasks: list[Callable[[], None]]) -> None:
    """Run the tasks on this thread and ``threads - 1`` helpers; whoever is free takes the next."""
    waiting = iter(tasks)  # the interpreter hands out its items one at a time, to whichever thread asks

    def work() -> None:
        for task in waiting:
            task()

    helpers = [_pool(threads - 1).submit(work) for _ in range(min(threads, len(tasks)) - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dmsh-hamming")
