"""The compiled part of :mod:`dmsh_serving.hamming.clustered`. Imports numba, so it is itself imported on first use.

The different codes lie sorted, in buckets of 64. For each bucket we know the bits that all its codes share (their
common prefix and more). The number of shared bits that differ from the query's bits is a lower bound of every distance
in the bucket. A search visits buckets by ascending bound until it has k places. Then it visits all other buckets whose
bound is at most the k-th distance. It must be "at most", not "less than": at the k-th distance the smallest ids win,
and a bucket that was not visited may hold smaller ids.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.buckets import (
    BUCKET,
    CLUSTERS,
    bound_buckets,
    bound_count,
    count_allowed,
    id_at,
    measure,
    next_allowed,
)
from dmsh_serving.hamming.kernels.candidates import CANDIDATE, copy, gather, sift_down, swap
from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    address_of,
    atomic_add,
    atomic_load,
    bits_below,
    bytes_read,
    call_kernel,
    carray,
    line_from,
    pointer_i32,
    pointer_i64,
    pointer_to,
    pointer_u16,
    record_at,
    record_type,
    trailing_zeros,
    types,
)
from dmsh_serving.hamming.kernels.memory import COUNTER, LINE, WORD

__all__ = ["CLUSTER_JOB", "room_for", "scratch_words", "search_clusters", "take_queries"]

CLUSTER_JOB: Final = np.dtype(
    [
        ("next_query", COUNTER),  # the first query that no participant has taken
        ("visited", WORD),  # buckets whose codes were measured, of all queries together
        ("clusters", np.int64),  # address of the CLUSTERS
        ("allowed", np.int64),  # address, (places,) bool; 0 if all places may be found
        ("places", np.int64),
        ("queries", np.int64),  # address, (query_count, words) uint64
        ("query_count", np.int64),
        ("k", np.int64),
        ("out_distances", np.int64),  # address, (query_count, k) int32
        ("out_places", np.int64),  # address, (query_count, k) int64
        ("room", np.int64),  # candidates that a participant keeps at a time
        ("scratch", np.int64),  # address of the first participant's scratch memory
        ("scratch_words", np.int64),  # per participant
    ],
    align=True,
)
STATE: Final = np.dtype(
    [
        ("used", np.int64),  # candidates
        ("cut", np.int64),  # the k-th distance so far, or one past the largest
        ("below", np.int64),  # places below the cut
        ("id_cut", np.int64),  # the largest first id that a candidate at the cut may have
    ],
    align=True,
)
_job_at, _clusters_at, _state_at = record_at(CLUSTER_JOB), record_at(CLUSTERS), record_at(STATE)
_job, _clusters, _state = record_type(CLUSTER_JOB), record_type(CLUSTERS), record_type(STATE)
_candidate = record_type(CANDIDATE)
_pointer_candidate = pointer_to(_candidate)
_JOB_BYTES: Final = CLUSTER_JOB.itemsize
_STATE_WORDS: Final = STATE.itemsize // 8
_CANDIDATE_WORDS: Final = CANDIDATE.itemsize // 8
_MIN_ROOM: Final = 4096
_ANY_ID: Final = 2**63 - 1


def room_for(groups: int, k: int) -> int:
    """Return how many candidates a search for ``k`` keeps at a time; :func:`_forget_far` makes room for more."""
    return min(groups, max(_MIN_ROOM, 2 * k)) + BUCKET


def scratch_words(slot: int, buckets: int, levels: int, room: int) -> int:
    """Return the 8-byte words of scratch memory that a participant needs for ``room`` candidates."""
    bounds = -(-buckets // BUCKET) * BUCKET // 4
    return _CANDIDATE_WORDS * room + levels + 1 + _STATE_WORDS + bounds + BUCKET // 4 + BUCKET * slot // 8


@compiled(types.void(types.int64, _state, _candidate[::1]))
def _forget_far(k: int, state: Any, candidates: Any) -> None:
    """Leave at most k candidates: those below the cut, and at the cut as many as can still be in the answer.

    Each candidate holds at least one place, so there are fewer than k below the cut. If m places are still wanted, they
    belong to the m candidates at the cut with the smallest first ids.
    """
    below = 0
    for i in range(state.used):
        if candidates[i].distance < state.cut:
            swap(candidates, i, below)
            below += 1
    size = gather(candidates, below, state.used, state.cut)
    heap = candidates[below:]
    wanted = min(size, k - state.below)
    for last in range(size - 1, size - 1 - wanted, -1):  # the smallest goes to the end, then the next before it
        swap(heap, 0, last)
        sift_down(heap, last, 0)
    for i in range(wanted):
        copy(heap, size - wanted + i, i)
    state.used = below + wanted
    if wanted == k - state.below:
        state.id_cut = heap[0].first_id  # the largest: it was moved last


@compiled(types.int64(_clusters, _job, _candidate[::1], types.int64, types.int64, types.int64[::1], types.int32[::1]))
def _merge(clusters: Any, job: Any, heap: Any, size: int, filled: int, out_places: Any, out_distances: Any) -> int:
    """Append the places of a heap of candidates at one distance, by ascending id, until the answer is full.

    Args:
        clusters: the CLUSTERS.
        job: the CLUSTER_JOB.
        heap: (at least size,) CANDIDATE; the places are taken from it.
        size: candidates in the heap; each has a place left.
        filled: places in the answer so far; the new number is returned.
        out_places: (k,) int64.
        out_distances: (k,) int32.
    """
    while size > 0 and filled < out_places.shape[0]:
        top = heap[0]
        out_places[filled] = top.place
        out_distances[filled] = top.distance
        filled += 1
        place = next_allowed(job, top.place + 1, top.end)
        if place < top.end:
            top.place, top.first_id = place, id_at(clusters, place)
        else:
            size -= 1
            copy(heap, size, 0)
        sift_down(heap, size, 0)
    return filled


@compiled(types.void(_clusters, _job, types.int64, types.int64, types.int64, _state, types.int64[::1], _candidate[::1]))
def _visit(
    clusters: Any, job: Any, query: int, bucket: int, scratch: int, state: Any, histogram: Any, candidates: Any
) -> None:
    """Make candidates of the codes in a bucket that are at most at the cut, and lower the cut.

    Args:
        clusters: the CLUSTERS.
        job: the CLUSTER_JOB.
        query: address of the query.
        bucket: its number.
        scratch: address of memory for one bucket.
        state: the STATE of the query.
        histogram: (levels + 1,) int64, places at each distance.
        candidates: (room,) CANDIDATE.
    """
    near = measure(clusters, query, bucket, state.cut, scratch)
    if near == 0:
        return
    if state.used + BUCKET > candidates.shape[0]:
        _forget_far(job.k, state, candidates)
    measured = carray(pointer_u16(scratch), BUCKET)
    starts = carray(pointer_i32(clusters.starts), clusters.count + 1)
    k = job.k
    while near != 0:
        i = trailing_zeros(near)
        near &= near - numba.uint64(1)
        distance = np.int64(measured[numba.uint64(i)])
        if distance > state.cut:
            continue
        code = bucket * BUCKET + i
        end = np.int64(starts[code + 1])
        place = next_allowed(job, np.int64(starts[code]), end)
        if place == end:
            continue
        first_id = id_at(clusters, place)
        if distance == state.cut and first_id > state.id_cut:
            continue
        candidate = candidates[state.used]
        candidate.first_id, candidate.place, candidate.end, candidate.distance = first_id, place, end, distance
        state.used += 1
        places = count_allowed(job, place, end, k)
        histogram[distance] += places
        if distance < state.cut:
            state.below += places
            while state.below >= k:
                state.id_cut = _ANY_ID
                state.cut -= 1
                state.below -= histogram[state.cut]


@entry("void(int64, int64)")
def take_queries(job_address: int, participant: int) -> None:
    """Take queries until none is left and write the first k places of each, in (distance, id) order."""
    job = _job_at(job_address)
    clusters = _clusters_at(job.clusters)
    k, buckets, levels = job.k, clusters.buckets, 8 * clusters.width + 1
    at = job.scratch + 8 * participant * job.scratch_words
    candidates = carray(_pointer_candidate(at), (job.room,))
    at += 8 * _CANDIDATE_WORDS * job.room
    histogram = carray(pointer_i64(at), levels + 1)
    at += 8 * (levels + 1)
    state = _state_at(at)
    bounds = at + 8 * _STATE_WORDS
    scratch = bounds + 2 * bound_count(buckets)
    out_distances = carray(pointer_i32(job.out_distances), (job.query_count, k))
    out_places = carray(pointer_i64(job.out_places), (job.query_count, k))
    while True:
        q = atomic_add(job.next_query, 1)
        if q >= job.query_count:
            return
        query = job.queries + 8 * q * clusters.words
        bound_buckets(clusters, query, bounds)
        for distance in range(levels + 1):
            histogram[distance] = 0
        state.used, state.cut, state.below, state.id_cut = 0, levels, 0, _ANY_ID
        visited = level = np.int64(0)  # buckets with a bound below the level were visited
        while level <= state.cut and level < levels:
            # Level by level until there are k places; then all buckets up to the cut in one sweep, in any order.
            last = level if state.cut == levels else state.cut
            for first in range(0, buckets, BUCKET):
                todo = bits_below(bounds + 2 * first, min(last, state.cut) + 1) & ~bits_below(bounds + 2 * first, level)
                while todo != 0:
                    bucket = first + trailing_zeros(todo)
                    _visit(clusters, job, query, bucket, scratch, state, histogram, candidates)
                    todo &= todo - numba.uint64(1)
                    visited += 1
            level = last + 1
        atomic_add(job.visited, visited)
        filled = done = np.int64(0)
        for distance in range(min(levels, state.cut + 1)):
            if histogram[distance] == 0 or filled == k:
                continue
            size = gather(candidates, done, state.used, distance)
            filled = _merge(clusters, job, candidates[done:], size, filled, out_places[q], out_distances[q])
            done += size


@compiled(
    types.int64(
        types.int64, types.int64, types.int64, types.int64[::1], bytes_read, types.int64, types.int64,
        types.int64[:, ::1], types.int32[:, ::1], types.int64[:, ::1],
    )
)  # fmt: skip
def search_clusters(
    clusters_address: int,
    take: int,
    share: int,
    mailboxes: Any,
    queries: Any,
    allowed: int,
    room: int,
    scratch: Any,
    out_distances: Any,
    out_places: Any,
) -> Any:
    """Write the first k places of every query, and return how many buckets were measured for all of them together.

    Args:
        clusters_address: of the CLUSTERS.
        take: address of :func:`take_queries`.
        share: address of :func:`dmsh_serving.hamming.kernels.helpers.share`.
        mailboxes: (helpers,) int64.
        queries: (queries, width) uint8.
        allowed: address of a boolean for each place; 0 if all places may be found.
        room: candidates that a participant keeps, from :func:`room_for`.
        scratch: (at least helpers + 1, :func:`scratch_words`) int64.
        out_distances: (queries, k) int32; entries beyond the places found are left as they are.
        out_places: (queries, k) int64, likewise.
    """
    clusters = _clusters_at(clusters_address)
    count, width = queries.shape
    padded = np.zeros((count, 8 * clusters.words), np.uint8)
    padded[:, :width] = queries
    memory = np.zeros(_JOB_BYTES + LINE, np.uint8)
    job = _job_at(line_from(memory))
    job.clusters, job.allowed, job.places = clusters_address, allowed, clusters.places
    job.queries, job.query_count, job.k = np.int64(padded.ctypes.data), count, out_places.shape[1]
    job.out_distances, job.out_places = np.int64(out_distances.ctypes.data), np.int64(out_places.ctypes.data)
    job.room, job.scratch, job.scratch_words = room, np.int64(scratch.ctypes.data), scratch.shape[1]
    call_kernel(share, take, address_of(job), np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
    visited = atomic_load(job.visited)
    memory[0] = padded[0, 0] = 0  # numba frees an array after its last use, and does not count the use of its address
    return visited
