"""Exact Hamming search over packed codes: ordered by (distance, row), always, for any thread count.

The compiled part is :mod:`dmsh_serving.hamming_kernel`, the slow obvious twin :mod:`dmsh_serving.hamming_oracle`.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import MAX_BITS, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError

Distances = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_QUERIES_A_SCAN = 64  # bounds the candidate buffers of one scan (20 MiB at the largest k)
_WORTH_A_THREAD = 1 << 20  # bytes of codes to compare; below, handing over costs more than it saves


def search(
    queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], k: int, *, threads: int | None = None
) -> tuple[Distances, Rows]:
    """Return the k nearest codes of every query.

    Args:
        queries: (Q, B) uint8, packed; Q may be 0.
        codes: (N, B) uint8, packed, 1 <= B <= 128; N may be 0. Read-only and memory-mapped arrays are searched
            in place; rows that are not contiguous are copied first.
        k: results a query, 1 to ``contract.MAX_K``.
        threads: at most so many; None takes the CPUs this process may use. The answer does not depend on it.

    Returns:
        distances (Q, k) int32 and rows (Q, k) int64, ordered by (distance, row) ascending. Where k exceeds N
        the rest is distance ``contract.PAD_DISTANCE``, row ``contract.PAD_ID``.

    Raises:
        InputError: a dtype, shape, k or thread count other than the above.
    """
    _check(queries, codes, k)
    threads = checked_threads(threads)
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


def checked_threads(threads: int | None) -> int:
    """Return ``threads``, or for None the number of CPUs this process may use; refuse less than 1."""
    if threads is None:
        return available_cpus()
    if threads < 1:
        raise InputError(f"threads = {threads}: give at least 1, or none to use every CPU")
    return threads


def available_cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def padded_queries(queries: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return queries (Q, B) as contiguous rows padded with zero bytes to a multiple of 8, as the kernel reads them."""
    count, width = queries.shape
    padded = np.zeros((count, (width + 7) // 8 * 8), np.uint8)
    padded[:, :width] = queries
    return padded


def _check(queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], k: int) -> None:
    for name, array in (("queries", queries), ("codes", codes)):
        if array.dtype != np.uint8 or array.ndim != 2:
            raise InputError(f"{name} must be uint8 [N, bytes], got {array.dtype} {list(array.shape)}")
    if queries.shape[1] != codes.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} bytes a code but the codes have {codes.shape[1]}: "
            "they were made with different bit counts"
        )
    if not 1 <= codes.shape[1] <= MAX_BITS // 8:
        raise InputError(f"codes of {codes.shape[1]} bytes cannot be searched: 1 to {MAX_BITS // 8} bytes can")
    checked_k(k)


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
