"""Codes stored once each with the ids that share them: the layout for galleries whose codes cluster.

Learned codes repeat, and those of one class differ in few bits. So equal codes are stored once, sorted, and a
search skips every bucket of 64 whose shared bits are already too far from the query's. The answer is that of a
plain scan, always: :func:`dmsh_serving.clustered_layout.choose_layout` says whether it comes sooner.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.clustered_layout import LayoutChoice, choose_layout, grouped
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming_inputs import (
    Codes,
    Mask,
    check_codes_and_queries,
    checked_mask,
    checked_radius,
    checked_threads,
    padded_queries,
)
from dmsh_serving.hamming_radius import RadiusResult
from dmsh_serving.workers import run

if TYPE_CHECKING:
    from dmsh_serving.hamming_kernel import Kernel

__all__ = ["ClusteredCodes", "LayoutChoice", "choose_layout", "cluster"]

Words = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SearchWork:
    """How much a search looked at, to judge the layout by.

    Attributes:
        buckets: in all.
        visited: buckets whose codes were measured, of all queries together.
    """

    buckets: int
    visited: int


@dataclass(frozen=True, eq=False)
class ClusteredCodes:
    """Equal codes stored once.

    A *place* is a position in ``ids``; group u holds the places [starts[u], starts[u + 1]), all with code u.
    What a search needs besides is derived from these on the first one.

    Attributes:
        codes: (U, B) uint8, all different, in ascending byte order; contiguous.
        starts: (U + 1,) int64, from 0 to N, strictly ascending; contiguous.
        ids: (N,) int64, not negative, ascending within a group, none twice; contiguous.
    """

    codes: Codes
    starts: Words
    ids: Words

    def __post_init__(self) -> None:
        """Refuse arrays that compiled code could not read safely; that ids and codes ascend is the maker's to keep."""
        wanted = ((self.codes, np.uint8, 2), (self.starts, np.int64, 1), (self.ids, np.int64, 1))
        if any(a.dtype != kind or a.ndim != axes or not a.flags.c_contiguous for a, kind, axes in wanted):
            raise InputError("clustered codes must be contiguous uint8 [U, bytes], int64 [U + 1] and int64 [N]")
        starts = self.starts
        if len(starts) != len(self.codes) + 1 or starts[0] != 0 or starts[-1] != len(self.ids):
            raise InputError(
                f"starts of {len(self.codes)} groups must go from 0 to {len(self.ids)} in {len(self.codes) + 1} steps, "
                f"got {len(starts)} from {starts[:1].tolist()} to {starts[-1:].tolist()}"
            )
        if not (starts[1:] > starts[:-1]).all():
            raise InputError("starts of clustered codes must ascend: every group holds at least one id")

    def search(
        self, queries: Codes, k: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], Words]:
        """Return the k nearest of every query, ordered by (distance, id).

        Args:
            queries: (Q, B) uint8, packed; Q may be 0.
            k: results a query, 1 to ``contract.MAX_K``.
            threads: at most so many, each with queries of its own; None takes the CPUs this process may use.
            allowed: (N,) bool over places, those that may be found; None for all.

        Returns:
            distances (Q, k) int32 and places (Q, k) int64; beyond the allowed ones ``contract.PAD_DISTANCE`` and
            ``contract.PAD_ID``.
        """
        distances, places, _ = self.measured_search(queries, k, threads=threads, allowed=allowed)
        return distances, places

    def measured_search(
        self, queries: Codes, k: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], Words, SearchWork]:
        """Search as :meth:`search` does, and say how much was looked at."""
        from dmsh_serving import clustered_kernel as kernel

        check_codes_and_queries(queries, self.codes)
        distances = np.full((len(queries), checked_k(k)), PAD_DISTANCE, np.int32)
        places = np.full(distances.shape, PAD_ID, np.int64)
        job = _Job(self, queries, k, allowed, threads)
        if job.possible:
            job.write(distances, places)
            job.run(kernel.search_clusters.address)
        return distances, places, SearchWork(self._buckets.count, int(job.words[kernel.VISITED]))

    def search_radius(
        self, queries: Codes, radius: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> RadiusResult:
        """Return every place at most ``radius`` from each query, ordered by (distance, id); ``rows`` are places."""
        from dmsh_serving import clustered_kernel as kernel

        check_codes_and_queries(queries, self.codes)
        job = _Job(self, queries, checked_radius(radius), allowed, threads)
        offsets = np.zeros(len(queries) + 1, np.int64)
        if job.possible:
            job.words[kernel.OFFSETS] = offsets.ctypes.data
            job.run(kernel.search_clusters_radius.address)
            np.cumsum(offsets, out=offsets)
        distances, places = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
        if len(places):
            job.write(distances, places)
            job.run(kernel.search_clusters_radius.address)
        for start, stop in itertools.pairwise(offsets.tolist()):
            of_query = slice(start, stop)
            order = np.lexsort((self.ids[places[of_query]], distances[of_query]))
            distances[of_query], places[of_query] = distances[of_query][order], places[of_query][order]
        return RadiusResult(offsets, distances, places)

    @functools.cached_property
    def _buckets(self) -> "_Buckets":
        return _Buckets(self.codes)


class _Buckets:
    """What the codes of each bucket share, as the kernel reads it: word by word, (words, buckets) uint64."""

    def __init__(self, codes: Codes) -> None:
        from dmsh_serving.clustered_kernel import BUCKET, describe_buckets
        from dmsh_serving.hamming_kernel import kernel_for

        self.count = -(-len(codes) // BUCKET)
        self.kernel: Kernel = kernel_for(codes.shape[1])
        self.row_bytes = max(8, self.kernel.slot)
        shared, values = (np.zeros((self.count, self.row_bytes), np.uint8) for _ in range(2))
        describe_buckets(codes.ctypes.data, codes.shape[1], len(codes), shared, values)
        self.shared = np.ascontiguousarray(shared.view(np.uint64).T)
        self.values = np.ascontiguousarray(values.view(np.uint64).T)


class _Job:
    """One call of the kernel, and the memory it works in."""

    def __init__(
        self, clustered: ClusteredCodes, queries: Codes, limit: int, allowed: Mask | None, threads: int | None
    ) -> None:
        from dmsh_serving import clustered_kernel as layout

        buckets, codes = clustered._buckets, clustered.codes
        mask = checked_mask(allowed, len(clustered.ids))
        self.limit = limit
        self.possible = len(queries) > 0 and len(codes) > 0
        self.participants = max(1, min(checked_threads(threads), len(queries)))
        self._queries = padded_queries(queries, buckets.row_bytes)
        words = layout.scratch_words(buckets.kernel.slot, buckets.count, limit)
        self._memory = np.empty((self.participants, words), np.int64)
        self._kept = (clustered, mask)
        self.words = np.array(
            [
                *(0, buckets.kernel.distances, buckets.kernel.spread, buckets.kernel.slot),
                *(codes.ctypes.data, codes.shape[1], len(codes)),
                *(buckets.count, buckets.shared.ctypes.data, buckets.values.ctypes.data),
                *(clustered.starts.ctypes.data, clustered.ids.ctypes.data, 0 if mask is None else mask.ctypes.data),
                *(self._queries.ctypes.data, buckets.row_bytes, len(queries), limit),
                *(0, 0, 0, 0, self._memory.ctypes.data, words),
            ],
            np.int64,
        )

    def write(self, distances: npt.NDArray[np.int32], places: Words) -> None:
        """Name the arrays that the next run writes to."""
        from dmsh_serving import clustered_kernel as layout

        self.words[layout.OUT_DISTANCES], self.words[layout.OUT_PLACES] = distances.ctypes.data, places.ctypes.data

    def run(self, function: int) -> None:
        """Call the compiled function on every thread."""
        self.words[0] = 0
        run(function, self.words, self.participants)


def cluster(codes: Codes, ids: Words) -> ClusteredCodes:
    """Return the clustered layout of codes (N, B) uint8 and their ids (N,) int64, in any order."""
    if codes.dtype != np.uint8 or codes.ndim != 2 or ids.dtype != np.int64 or ids.shape != codes.shape[:1]:
        raise InputError(
            f"give codes uint8 [N, bytes] and ids int64 [N], got {codes.dtype} {list(codes.shape)} and {ids.dtype} "
            f"{list(ids.shape)}"
        )
    if not (ids[1:] > ids[:-1]).all():
        by_id = np.argsort(ids, kind="stable")
        codes, ids = codes[by_id], ids[by_id]
    order, starts = grouped(codes)  # stable: the ids of a group stay in order
    return ClusteredCodes(np.ascontiguousarray(codes[order[starts[:-1]]]), starts, np.ascontiguousarray(ids[order]))
