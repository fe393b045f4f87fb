"""Codes stored once each with the ids that share them: the layout for galleries whose codes cluster.

Learned codes repeat, and those of one class differ in few bits. So equal codes are stored once, sorted, and a
search skips every bucket of 64 whose shared bits are already too far from the query's. The answer is that of a
plain scan, always: :func:`dmsh_serving.hamming.layout.choose_layout` says whether it comes sooner.
"""

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming.helper_threads import run
from dmsh_serving.hamming.inputs import (
    Codes,
    Mask,
    check_codes_and_queries,
    checked_mask,
    checked_threads,
    padded_queries,
)
from dmsh_serving.hamming.nearest import search
from dmsh_serving.hamming.sorting import ascends, grouped

__all__ = ["MAX_PLACES", "ClusteredCodes", "cluster"]

MAX_PLACES: Final = 2**31 - 1  # positions, and ids where they fit, take 4 bytes

# A filter that leaves few places makes each query look at many groups until it has k of them: for several queries it
# is then quicker to find those places once and to compare only their codes.
_QUERIES_WORTH_GATHERING: Final = 8
_FEW_OF: Final = 64  # places for each that is allowed
_FEW_FOR_K: Final = 32  # allowed places for each one asked for

Words = npt.NDArray[np.int64]
Starts = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class SearchWork:
    """How much a search looked at, to judge the layout by; nothing where it compared the few allowed codes instead.

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
        starts: (U + 1,) int32, from 0 to N, strictly ascending; contiguous.
        ids: (N,) int32 (half the memory, see :func:`narrowed`) or int64, not negative, ascending within a group, none
            twice; contiguous.
    """

    codes: Codes
    starts: Starts
    ids: Ids

    def __post_init__(self) -> None:
        """Refuse arrays that compiled code could not read safely; that ids and codes ascend is the maker's to keep."""
        wanted = ((self.codes, (np.uint8,), 2), (self.starts, (np.int32,), 1), (self.ids, (np.int32, np.int64), 1))
        if any(a.dtype not in kinds or a.ndim != axes or not a.flags.c_contiguous for a, kinds, axes in wanted):
            raise InputError(
                "clustered codes must be contiguous uint8 [U, bytes], int32 [U + 1], and int32 or int64 [N]"
            )
        starts = self.starts
        if len(starts) != len(self.codes) + 1 or starts[0] != 0 or starts[-1] != len(self.ids):
            raise InputError(
                f"starts of {len(self.codes)} groups must go from 0 to {len(self.ids)} in {len(self.codes) + 1} steps, "
                f"got {len(starts)} from {starts[:1].tolist()} to {starts[-1:].tolist()}"
            )
        if not ascends(starts):
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
        check_codes_and_queries(queries, self.codes)
        allowed = checked_mask(allowed, len(self.ids))
        k = checked_k(k)
        if allowed is not None and len(queries) >= _QUERIES_WORTH_GATHERING:
            count = np.count_nonzero(allowed)
            if count <= min(len(allowed) // _FEW_OF, _FEW_FOR_K * k):
                return *self._search_few(queries, k, threads, np.flatnonzero(allowed)), SearchWork(0, 0)
        distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
        places = np.full(distances.shape, PAD_ID, np.int64)
        searcher = self._searcher
        job = searcher.job(queries, k, allowed, threads, searcher.nearest.room_for(len(self.codes), k))
        if len(queries) and len(self.codes):
            job.words[searcher.fields.OUT_DISTANCES] = distances.ctypes.data
            job.words[searcher.fields.OUT_PLACES] = places.ctypes.data
            job.run(searcher.nearest.search_clusters.address)
        return distances, places, SearchWork(searcher.buckets, int(job.words[searcher.fields.VISITED]))

    def _search_few(
        self, queries: Codes, k: int, threads: int | None, places: Words
    ) -> tuple[npt.NDArray[np.int32], Words]:
        """Return what :meth:`search` does, by comparing the codes of all ``places`` (M,) that may be found."""
        places = places[np.argsort(self.ids[places])]
        # NumPy would copy all starts to a wider type of places.
        groups = np.searchsorted(self.starts, places.astype(np.int32), side="right") - 1
        distances, found = search(queries, self.codes[groups], k, threads=threads)
        return distances, np.append(places, PAD_ID)[found]  # found is -1, the last, for padding

    @functools.cached_property
    def _searcher(self) -> "_Searcher":
        return _Searcher(self)


class _Searcher:
    """What every search of the same codes shares: the buckets, the compiled functions, and the words of a job."""

    def __init__(self, clustered: ClusteredCodes) -> None:
        from dmsh_serving.hamming.kernels import clustered as clustered_kernel
        from dmsh_serving.hamming.kernels import clustered_job
        from dmsh_serving.hamming.kernels.vectors import kernel_for

        self.fields, self.nearest = clustered_job, clustered_kernel
        codes = clustered.codes
        kernel = kernel_for(codes.shape[1])
        self.buckets = -(-len(codes) // clustered_job.BUCKET)
        self._query_bytes = max(8, kernel.slot)
        shared, values = (np.zeros((self.buckets, self._query_bytes), np.uint8) for _ in range(2))
        clustered_kernel.describe_buckets(codes.ctypes.data, codes.shape[1], len(codes), shared, values)
        # Word by word, (words, buckets) uint64, as the kernel reads them; the job holds their addresses.
        self._shared = np.ascontiguousarray(shared.view(np.uint64).T)
        self._values = np.ascontiguousarray(values.view(np.uint64).T)
        self._slot, self._levels = kernel.slot, 8 * codes.shape[1] + 1
        self._words = np.zeros(clustered_job.WORDS, np.int64)
        self._words[: clustered_job.ALLOWED] = (
            *(0, kernel.rows.near, kernel.rows.arrange, codes.ctypes.data, codes.shape[1], len(codes)),
            *(self.buckets, self._shared.ctypes.data, self._values.ctypes.data),
            *(clustered.starts.ctypes.data, clustered.ids.ctypes.data, clustered.ids.itemsize, len(clustered.ids)),
        )
        self._words[clustered_job.QUERY_BYTES] = self._query_bytes

    def job(self, queries: Codes, limit: int, allowed: Mask | None, threads: int | None, room: int) -> "_Job":
        """Return a job for these queries; k is its limit, ``room`` how many candidates it keeps."""
        participants = max(1, min(checked_threads(threads), len(queries)))
        padded = padded_queries(queries, self._query_bytes)
        words, fields = self._words.copy(), self.fields
        words[fields.ROOM] = room
        words[fields.SCRATCH_WORDS] = self.nearest.scratch_words(self._slot, self.buckets, room, self._levels)
        memory = np.empty(participants * words[fields.SCRATCH_WORDS], np.int64)
        words[fields.QUERIES], words[fields.QUERY_COUNT] = padded.ctypes.data, len(queries)
        words[fields.LIMIT], words[fields.SCRATCH] = limit, memory.ctypes.data
        words[fields.ALLOWED] = 0 if allowed is None else allowed.ctypes.data
        return _Job(words, participants, (padded, memory, allowed))


@dataclass(frozen=True, eq=False)
class _Job:
    """The words that compiled code reads, for how many threads, and the arrays whose addresses are among them."""

    words: Words
    participants: int
    kept: tuple[object, ...]

    def run(self, function: int) -> None:
        """Call the compiled function on every thread."""
        self.words[0] = 0
        run(function, self.words, self.participants)


def narrowed(ids: Words) -> Ids:
    """Return ids (N,) int64 as int32 where all fit."""
    return ids.astype(np.int32) if ids.max(initial=0) <= MAX_PLACES else ids


def cluster(codes: Codes, ids: Words) -> ClusteredCodes:
    """Return the clustered layout of codes (N, B) uint8 and their ids (N,) int64, in any order.

    Raises:
        InputError: arrays that do not fit together, ids below 0 or repeated, or more codes than the layout can number.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2 or ids.dtype != np.int64 or ids.shape != codes.shape[:1]:
        raise InputError(
            f"give codes uint8 [N, bytes] and ids int64 [N], got {codes.dtype} {list(codes.shape)} and {ids.dtype} "
            f"{list(ids.shape)}"
        )
    if len(codes) > MAX_PLACES:
        raise InputError(f"{len(codes)} codes are too many for the clustered layout: it takes {MAX_PLACES}")
    if not (ids[1:] > ids[:-1]).all():
        by_id = np.argsort(ids, kind="stable")
        codes, ids = codes[by_id], ids[by_id]
        if not (ids[1:] > ids[:-1]).all():
            raise InputError("an id is there more than once: give every code its own")
    if len(ids) and ids[0] < 0:
        raise InputError(f"id {ids[0]} is negative: ids are 0 or more")
    order, starts = grouped(codes)  # stable: the ids of a group stay in order
    return ClusteredCodes(
        np.ascontiguousarray(codes[order[starts[:-1]]]), starts.astype(np.int32), narrowed(ids)[order]
    )
