"""Codes stored once each, with the ids of the images that have them: the layout for galleries whose codes cluster.

Learned codes repeat, and the codes of one class differ in few bits. So equal codes are stored once, sorted, in buckets
of 64. A search skips a bucket if the bits that its codes share are already too far from the query's. The answer is
always that of a plain scan; :func:`dmsh_serving.hamming.layout.choose_layout` says whether it comes sooner.
"""

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.codes import Codes
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.hamming.inputs import (
    Mask,
    check_codes_and_queries,
    checked_mask,
)
from dmsh_serving.hamming.nearest import search
from dmsh_serving.hamming.sorting import ascends, grouped
from dmsh_serving.hamming.thread_pool import Helpers
from dmsh_serving.hamming.threads import checked_threads, one_per_query

__all__ = ["MAX_PLACES", "ClusteredCodes", "cluster"]

MAX_PLACES: Final = 2**31 - 1  # a place takes 4 bytes

# If a filter leaves few places, each query measures many codes until it has k places. For several queries it is quicker
# to find the allowed places once and to compare only their codes.
_QUERIES_WORTH_GATHERING: Final = 8
_FEW_OF: Final = 64  # few: at most one place in so many is allowed,
_FEW_FOR_K: Final = 32  # and at most so many times k are allowed

Words = npt.NDArray[np.int64]
Starts = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class SearchWork:
    """How much work a search did, to judge the layout; zeros if it compared only the few allowed codes.

    Attributes:
        buckets: number of all buckets.
        visited: buckets whose codes were measured, summed over all queries.
    """

    buckets: int
    visited: int


@dataclass(frozen=True, eq=False)
class ClusteredCodes:
    """Equal codes stored once.

    A *place* is a position in ``ids``; the places [starts[u], starts[u + 1]) have code u. The first search derives what
    else it needs.

    Attributes:
        codes: (U, B) uint8, all different, in ascending byte order; contiguous.
        starts: (U + 1,) int32, from 0 to N, strictly ascending; contiguous.
        ids: (N,) int32 (half the memory, see :func:`narrowed`) or int64, not negative, all different, ascending among
            the places of one code; contiguous.
    """

    codes: Codes
    starts: Starts
    ids: Ids

    def __post_init__(self) -> None:
        """Refuse arrays that compiled code could not read safely; the caller answers for the order of codes and ids."""
        wanted = ((self.codes, (np.uint8,), 2), (self.starts, (np.int32,), 1), (self.ids, (np.int32, np.int64), 1))
        if any(a.dtype not in kinds or a.ndim != axes or not a.flags.c_contiguous for a, kinds, axes in wanted):
            raise InputError(
                "clustered codes must be contiguous uint8 [U, bytes], int32 [U + 1], and int32 or int64 [N]"
            )
        starts = self.starts
        if len(starts) != len(self.codes) + 1 or starts[0] != 0 or starts[-1] != len(self.ids):
            raise InputError(
                f"starts of {len(self.codes)} codes must go from 0 to {len(self.ids)} in {len(self.codes) + 1} steps, "
                f"got {len(starts)} from {starts[:1].tolist()} to {starts[-1:].tolist()}"
            )
        if not ascends(starts):
            raise InputError("starts of clustered codes must ascend: every code has at least one id")

    def search(
        self, queries: Codes, k: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], Words]:
        """Return the k nearest of every query, ordered by (distance, id).

        Args:
            queries: (Q, B) uint8, packed; Q may be 0.
            k: results per query, 1 to ``contract.MAX_K``.
            threads: the most threads to use, each for other queries; None for all CPUs that this process may use.
            allowed: (N,) bool, whether each place may be found; None if all may.

        Returns:
            distances (Q, k) int32 and places (Q, k) int64. If fewer than k may be found, the rest is
            ``contract.PAD_DISTANCE`` and ``contract.PAD_ID``.

        Raises:
            InputError: a dtype, shape, k or thread count other than the above.
        """
        distances, places, _ = self.measured_search(queries, k, threads=threads, allowed=allowed)
        return distances, places

    def measured_search(
        self, queries: Codes, k: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], Words, SearchWork]:
        """Search as :meth:`search` does, and return how much work it was."""
        check_codes_and_queries(queries, self.codes)
        allowed = checked_mask(allowed, len(self.ids))
        k = checked_k(k)
        if allowed is not None and len(queries) >= _QUERIES_WORTH_GATHERING:
            count = np.count_nonzero(allowed)
            if count <= min(len(allowed) // _FEW_OF, _FEW_FOR_K * k):
                return *self._search_few(queries, k, threads, np.flatnonzero(allowed)), SearchWork(0, 0)
        distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
        places = np.full(distances.shape, PAD_ID, np.int64)
        participants = one_per_query(checked_threads(threads), len(queries))
        searcher = self._searcher
        visited = 0
        if len(queries) and len(self.codes):
            visited = searcher.search(queries, allowed, participants, distances, places)
        return distances, places, SearchWork(searcher.buckets, visited)

    def _search_few(
        self, queries: Codes, k: int, threads: int | None, places: Words
    ) -> tuple[npt.NDArray[np.int32], Words]:
        """Search as :meth:`search` does, by comparing the codes of all ``places`` (M,) that may be found."""
        places = places[np.argsort(self.ids[places])]
        # int32, or NumPy would copy all starts to the wider dtype of places.
        groups = np.searchsorted(self.starts, places.astype(np.int32), side="right") - 1
        distances, found = search(queries, self.codes[groups], k, threads=threads)
        return distances, np.append(places, PAD_ID)[found]  # padding is -1, the last

    @functools.cached_property
    def _searcher(self) -> "_Searcher":
        return _Searcher(self)


class _Searcher:
    """What all searches of the same codes share: the buckets, and the record that compiled code reads."""

    def __init__(self, clustered: ClusteredCodes) -> None:
        from dmsh_serving.hamming.kernels.buckets import BUCKET, CLUSTERS, describe_buckets
        from dmsh_serving.hamming.kernels.clustered import room_for, scratch_words, search_clusters, take_queries
        from dmsh_serving.hamming.kernels.helpers import share
        from dmsh_serving.hamming.kernels.memory import new_record
        from dmsh_serving.hamming.kernels.vectors import kernel_for

        codes, starts, ids = clustered.codes, clustered.starts, clustered.ids
        count, width = codes.shape
        kernel = kernel_for(width)
        words = max(8, kernel.slot) // 8
        self.buckets = -(-count // BUCKET)
        shared, values = (np.zeros((self.buckets, 8 * words), np.uint8) for _ in range(2))
        describe_buckets(codes.ctypes.data, width, count, shared, values)
        self._shared = np.ascontiguousarray(shared.view(np.uint64).T)  # (words, buckets), as the kernel reads them
        self._values = np.ascontiguousarray(values.view(np.uint64).T)
        self._record = new_record(
            CLUSTERS,
            near=kernel.rows.near,
            arrange=kernel.rows.arrange,
            codes=codes.ctypes.data,
            width=width,
            count=count,
            buckets=self.buckets,
            words=words,
            shared=self._shared.ctypes.data,
            values=self._values.ctypes.data,
            starts=starts.ctypes.data,
            ids=ids.ctypes.data,
            id_bytes=ids.itemsize,
            places=len(ids),
        )
        self._address = self._record.ctypes.data
        self._search, self._take, self._share = search_clusters, take_queries.address, share.address
        self._room_for = functools.partial(room_for, count)
        self._scratch_words = functools.partial(scratch_words, kernel.slot, self.buckets, 8 * width + 1)

    def search(
        self,
        queries: Codes,
        allowed: Mask | None,
        participants: int,
        distances: npt.NDArray[np.int32],
        places: Words,
    ) -> int:
        """Write the nearest places (Q, k) and their distances; return how many buckets were measured."""
        room = self._room_for(places.shape[1])
        scratch = np.empty((participants, self._scratch_words(room)), np.int64)
        queries = np.ascontiguousarray(queries)
        mask = 0 if allowed is None else allowed.ctypes.data
        with Helpers(participants - 1) as mailboxes:
            visited: int = self._search(
                self._address, self._take, self._share, mailboxes, queries, mask, room, scratch, distances, places
            )
        return visited


def narrowed(ids: Words) -> Ids:
    """Return ids (N,) int64 as int32 if all of them fit."""
    return ids.astype(np.int32) if ids.max(initial=0) <= MAX_PLACES else ids


def cluster(codes: Codes, ids: Words) -> ClusteredCodes:
    """Return the clustered layout of codes (N, B) uint8 and their ids (N,) int64, in any order.

    Raises:
        InputError: arrays that do not fit together, a negative or repeated id, or more than ``MAX_PLACES`` codes.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2 or ids.dtype != np.int64 or ids.shape != codes.shape[:1]:
        raise InputError(
            f"give codes uint8 [N, bytes] and ids int64 [N], got {codes.dtype} {list(codes.shape)} and {ids.dtype} "
            f"{list(ids.shape)}"
        )
    if len(codes) > MAX_PLACES:
        raise InputError(f"{len(codes)} codes are too many for the clustered layout: it holds at most {MAX_PLACES}")
    if not (ids[1:] > ids[:-1]).all():
        by_id = np.argsort(ids, kind="stable")
        codes, ids = codes[by_id], ids[by_id]
        if not (ids[1:] > ids[:-1]).all():
            raise InputError("an id is there more than once: give every code an id of its own")
    if len(ids) and ids[0] < 0:
        raise InputError(f"id {ids[0]} is negative: ids are 0 or more")
    order, starts = grouped(codes)  # stable: the ids of a code stay in order
    return ClusteredCodes(
        np.ascontiguousarray(codes[order[starts[:-1]]]), starts.astype(np.int32), narrowed(ids)[order]
    )
