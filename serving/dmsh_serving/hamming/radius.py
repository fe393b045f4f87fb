"""Every code within a Hamming distance, ordered by (distance, row)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.helper_threads import run
from dmsh_serving.hamming.inputs import (
    Codes,
    Mask,
    check_codes_and_queries,
    checked_mask,
    checked_radius,
    checked_threads,
    padded_queries,
    worthwhile_threads,
)
from dmsh_serving.hamming.kernels.cache_lines import aligned_words

_QUERIES_A_SCAN = 64  # that use a block of codes while it is in the first-level cache
_PARTS_A_THREAD = 4  # so that a thread which comes late finds something left
_COUNT_BYTES = 64 << 20  # bounds the queries of one scan where the radius or the threads are large


@dataclass(frozen=True)
class RadiusResult:
    """The hits of Q queries, one query's after the other's; those of query q lie in [offsets[q], offsets[q + 1]).

    Attributes:
        offsets: (Q + 1,) int64.
        distances: (M,) int32, ascending within a query.
        rows: (M,) int64, ascending within equal distances of a query.
    """

    offsets: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]

    def of(self, query: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the distances and rows of one query."""
        part = slice(self.offsets[query], self.offsets[query + 1])
        return self.distances[part], self.rows[part]


def search_radius(
    queries: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    radius: int,
    *,
    threads: int | None = None,
    allowed: Mask | None = None,
) -> RadiusResult:
    """Return every code at most ``radius`` from each query.

    Args:
        queries: (Q, B) uint8, packed; Q may be 0.
        codes: (N, B) uint8, packed; N may be 0.
        radius: largest distance, at least 0.
        threads: at most so many; None takes the CPUs this process may use.
        allowed: (N,) bool, the rows that may be found; None for all.

    Raises:
        InputError: a dtype, shape, radius or thread count other than the above.
    """
    check_codes_and_queries(queries, codes)
    radius = min(checked_radius(radius), 8 * codes.shape[1])
    threads = checked_threads(threads)
    allowed = checked_mask(allowed, len(codes))
    if len(codes) == 0 or len(queries) == 0:
        return RadiusResult(np.zeros(len(queries) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
    codes = np.ascontiguousarray(codes)
    batch = max(1, min(_QUERIES_A_SCAN, _COUNT_BYTES // (8 * (radius + 1) * threads * _PARTS_A_THREAD)))
    batches = [
        _search(queries[first : first + batch], codes, radius, threads, allowed)
        for first in range(0, len(queries), batch)
    ]
    return joined(batches)


def joined(batches: list[RadiusResult]) -> RadiusResult:
    """Return the results of consecutive batches of queries as one."""
    if len(batches) == 1:
        return batches[0]
    ends = np.cumsum([0, *(batch.offsets[-1] for batch in batches)])
    offsets = [batch.offsets[:-1] + end for batch, end in zip(batches, ends[:-1], strict=True)]
    return RadiusResult(
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([batch.distances for batch in batches]),
        np.concatenate([batch.rows for batch in batches]),
    )


def _search(queries: Codes, codes: Codes, radius: int, threads: int, allowed: Mask | None) -> RadiusResult:
    from dmsh_serving.hamming.kernels import radius as radius_kernel
    from dmsh_serving.hamming.kernels.job import GROUP
    from dmsh_serving.hamming.kernels.vectors import kernel_for

    kernel = kernel_for(codes.shape[1])
    participants = worthwhile_threads(threads, len(queries) * codes.size)
    part = -(-len(codes) // (participants * (_PARTS_A_THREAD if participants > 1 else 1)))
    part = -(-part // kernel.block) * kernel.block
    parts = -(-len(codes) // part)
    padded = padded_queries(queries, kernel.slot)
    scratch_bytes = (kernel.slot + 1) * kernel.block + 2 * GROUP  # whole cache lines
    scratch = aligned_words(participants * scratch_bytes // 8)
    places = np.zeros((parts, len(queries), radius + 1), np.int64)
    job = np.array(
        [
            *(0, *kernel.words_for(len(queries)).tolist()),
            *(codes.ctypes.data, codes.shape[1], len(codes), 0 if allowed is None else allowed.ctypes.data),
            *(padded.ctypes.data, len(padded), radius, part, parts, places.ctypes.data, 0, 0),
            *(scratch.ctypes.data, scratch_bytes),
        ],
        np.int64,
    )
    run(radius_kernel.scan_radius.address, job, participants)
    offsets = np.empty(len(queries) + 1, np.int64)
    radius_kernel.places_from_counts(places, offsets)
    result = RadiusResult(offsets, np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64))
    job[radius_kernel.NEXT] = 0
    job[radius_kernel.OUT_DISTANCES] = result.distances.ctypes.data
    job[radius_kernel.OUT_ROWS] = result.rows.ctypes.data
    run(radius_kernel.scan_radius.address, job, participants)
    return result
