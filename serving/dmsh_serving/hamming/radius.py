"""Every code within a Hamming distance, ordered by (distance, row)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.hamming.inputs import (
    Mask,
    check_codes_and_queries,
    checked_mask,
    checked_radius,
)
from dmsh_serving.hamming.thread_pool import Helpers
from dmsh_serving.hamming.threads import checked_threads, worthwhile_threads

_QUERIES_PER_SCAN = 64  # they use a block of codes while it is in the first-level cache
_PARTS_PER_THREAD = 4  # so that a thread that comes late still finds work
_COUNT_BYTES = 64 << 20  # the most memory for counts: a large radius or many threads mean fewer queries per scan


__all__ = ["RadiusResult", "search_radius"]


@dataclass(frozen=True)
class RadiusResult:
    """The hits of Q queries, one query after the other; the hits of query q lie in [offsets[q], offsets[q + 1]).

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
        threads: the most threads to use; None for all CPUs that this process may use. It does not change the answer.
        allowed: (N,) bool, whether each row may be found; None if all may.

    Raises:
        InputError: a dtype, shape, radius or thread count other than the above.
    """
    check_codes_and_queries(queries, codes)
    radius = min(checked_radius(radius), 8 * codes.shape[1])
    threads = checked_threads(threads)
    allowed = checked_mask(allowed, len(codes))
    if len(codes) == 0 or len(queries) == 0:
        return RadiusResult(np.zeros(len(queries) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
    queries, codes = np.ascontiguousarray(queries), np.ascontiguousarray(codes)
    batch = max(1, min(_QUERIES_PER_SCAN, _COUNT_BYTES // (8 * (radius + 1) * threads * _PARTS_PER_THREAD)))
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
    from dmsh_serving.hamming.kernels.helpers import share
    from dmsh_serving.hamming.kernels.radius import scan_radius, search_within
    from dmsh_serving.hamming.kernels.vectors import kernel_for

    kernel = kernel_for(codes.shape[1])
    participants = worthwhile_threads(threads, len(queries) * codes.size)
    part = -(-len(codes) // (participants * (_PARTS_PER_THREAD if participants > 1 else 1)))
    part = -(-part // kernel.block) * kernel.block
    mask = 0 if allowed is None else allowed.ctypes.data
    job = kernel.record_for(len(queries))
    with Helpers(participants - 1) as mailboxes:
        found = search_within(job, scan_radius.address, share.address, mailboxes, codes, mask, queries, radius, part)
    return RadiusResult(*found)
