"""Exact Hamming search over packed codes: ordered by (distance, row), always, for any thread count.

The compiled part is :mod:`dmsh_serving.hamming_kernel`, the slow obvious twin :mod:`dmsh_serving.hamming_oracle`.
"""

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming_inputs import (
    Codes,
    Mask,
    available_cpus,
    check_codes_and_queries,
    checked_mask,
    checked_threads,
    padded_queries,
    worthwhile_threads,
)
from dmsh_serving.hamming_radius import RadiusResult, search_radius
from dmsh_serving.workers import run

__all__ = ["RadiusResult", "available_cpus", "search", "search_radius"]

Distances = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_QUERIES_A_SCAN = 64  # that use a block of codes while it is in the first-level cache
_CANDIDATE_BYTES = 64 << 20  # bounds the queries of one scan where k or the threads are many
_BLOCKS_A_CHUNK = 8  # that a thread takes at a time for a lone query: some microseconds


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
    distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
    rows = np.full((len(queries), k), PAD_ID, np.int64)
    if len(codes) and len(queries):
        _search(queries, np.ascontiguousarray(codes), allowed, threads, distances, rows)
    return distances, rows


def _search(queries: Codes, codes: Codes, allowed: Mask | None, threads: int, distances: Distances, rows: Rows) -> None:
    """Fill ``distances`` and ``rows`` batch by batch, with scratch memory that does not grow with the queries."""
    from dmsh_serving import hamming_scan as scan
    from dmsh_serving.hamming_kernel import kernel_for

    k, width = distances.shape[1], codes.shape[1]
    kernel = kernel_for(width)
    participants = worthwhile_threads(threads, len(queries) * codes.size)
    capacity, levels = 2 * k + scan.GROUP, 8 * width + 1
    batch = max(1, min(_QUERIES_A_SCAN, len(queries), _CANDIDATE_BYTES // (12 * capacity * participants)))
    padded = padded_queries(queries, kernel.slot)
    words = scan.memory_words(kernel.slot, kernel.block, batch, capacity, levels)
    memory = np.empty(participants * words, np.int64)
    job = np.zeros(scan.STATES + participants * batch * scan.STATE, np.int64)
    job[: scan.STATES] = (
        *(0, kernel.hit_groups, kernel.distances, kernel.spread, kernel.mask_block, kernel.slot, kernel.block),
        kernel.block * max(1, _BLOCKS_A_CHUNK // len(queries)),
        *(codes.ctypes.data, width, len(codes), 0 if allowed is None else allowed.ctypes.data),
        *(padded.ctypes.data, batch, k, levels, batch, capacity, memory.ctypes.data, words),
    )
    for first in range(0, len(queries), batch):
        if first:
            job[scan.NEXT] = 0
            job[scan.QUERIES] += batch * kernel.slot
            job[scan.QUERY_COUNT] = min(batch, len(queries) - first)
            job[scan.STATES :] = 0
        run(scan.scan.address, job, participants)
        scan.finish(job, participants, first, distances, rows)
