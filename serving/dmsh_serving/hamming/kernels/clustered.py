"""The compiled part of :mod:`dmsh_serving.hamming.clustered`. Imports numba, so it is itself imported on first use.

The different codes lie sorted, in buckets of 64. Of each bucket the bits are known that all its codes share (its
common prefix, and whatever else they have in common): the number of those that differ from the query's is a lower
bound of every distance in the bucket. Buckets are visited by ascending bound until k places are found, then in one
sweep all others whose bound is no more than the k-th distance. "No more", not "less": at the k-th distance the ids
decide, and a bucket not yet seen may hold smaller ones.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.clustered_job import (
    BUCKET,
    BUCKETS,
    COUNT,
    LIMIT,
    NEXT,
    OUT_DISTANCES,
    OUT_PLACES,
    QUERIES,
    QUERY_BYTES,
    QUERY_COUNT,
    ROOM,
    SCRATCH,
    SCRATCH_WORDS,
    STARTS,
    VISITED,
    WIDTH,
    WORDS,
    bound_buckets,
    count_allowed,
    id_at,
    measure,
    next_allowed,
)
from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    atomic_add,
    bits_below,
    carray,
    pointer_i32,
    pointer_i64,
    pointer_u8,
    pointer_u16,
    trailing_zeros,
)

USED, CUT, BELOW, ID_CUT, STATE = range(5)  # words of a state, and their number
FIRST_ID, PLACE, END, DISTANCE, CANDIDATE = range(5)  # words of a candidate, and their number

_MIN_ROOM: Final = 4096
_ANY_ID: Final = 2**63 - 1


def room_for(groups: int, k: int) -> int:
    """Return how many candidates a search for ``k`` keeps at a time; :func:`_forget_far` makes room for more."""
    return min(groups, max(_MIN_ROOM, 2 * k)) + BUCKET


def scratch_words(slot: int, buckets: int, room: int, levels: int) -> int:
    """Return the 8-byte words of memory a participant needs for ``room`` candidates (0 where there are none)."""
    bounds = -(-buckets // BUCKET) * BUCKET // 4
    return CANDIDATE * room + levels + 1 + STATE + bounds + BUCKET // 4 + BUCKET * slot // 8


@compiled("void(int64, int64, int64, uint8[:,::1], uint8[:,::1])")
def describe_buckets(codes: int, width: int, count: int, shared: Any, values: Any) -> None:
    """Write which bits all codes of each bucket share, and their values; bytes beyond ``width`` are left alone.

    Args:
        codes: address of the sorted codes.
        width: bytes a code.
        count: number of codes.
        shared: (buckets, at least width) uint8.
        values: likewise.
    """
    source = carray(pointer_u8(codes), (count, width))
    for bucket in range(shared.shape[0]):
        for byte in range(width):
            ones, zeros = np.uint8(255), np.uint8(255)
            for row in range(bucket * BUCKET, min(count, (bucket + 1) * BUCKET)):
                ones &= source[row, byte]
                zeros &= ~source[row, byte]
            shared[bucket, byte] = ones | zeros
            values[bucket, byte] = ones


@compiled("void(int64[:,::1], int64, int64)")
def _sift_down(heap: Any, size: int, at: int) -> None:
    """Let entry ``at`` of a heap of candidates at one distance, the smallest id first, sink to where it belongs."""
    first_id, place, end = heap[at, FIRST_ID], heap[at, PLACE], heap[at, END]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1, FIRST_ID] < heap[child, FIRST_ID]:
            child += 1
        if first_id <= heap[child, FIRST_ID]:
            break
        heap[at, FIRST_ID], heap[at, PLACE], heap[at, END] = heap[child, FIRST_ID], heap[child, PLACE], heap[child, END]
        at = child
    heap[at, FIRST_ID], heap[at, PLACE], heap[at, END] = first_id, place, end


@compiled("int64(int64[:,::1], int64, int64, int64)")
def _gather(candidates: Any, start: int, used: int, distance: int) -> int:
    """Bring the candidates at ``distance`` to ``start``, as a heap; return their number."""
    size = 0
    for i in range(start, used):
        if candidates[i, DISTANCE] == distance:
            at = start + size
            for word in range(CANDIDATE):
                candidates[i, word], candidates[at, word] = candidates[at, word], candidates[i, word]
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift_down(candidates[start:], size, i)
    return size


@compiled("void(int64[::1], int64[::1], int64[:,::1])")
def _forget_far(job: Any, state: Any, candidates: Any) -> None:
    """Leave at most k candidates: those below the cut, and at the cut as many as can still be in the answer.

    Each candidate holds a place or more. So the groups below the cut are fewer than k, and those at the cut which the
    answer takes its remaining m ids from are among the m with the smallest first ids.
    """
    below = 0
    for i in range(state[USED]):
        if candidates[i, DISTANCE] < state[CUT]:
            for word in range(CANDIDATE):
                candidates[i, word], candidates[below, word] = candidates[below, word], candidates[i, word]
            below += 1
    size = _gather(candidates, below, state[USED], state[CUT])
    heap = candidates[below:]
    wanted = min(size, job[LIMIT] - state[BELOW])
    for last in range(size - 1, size - 1 - wanted, -1):  # the smallest in turn, from the end of the heap downwards
        for word in range(CANDIDATE):
            heap[0, word], heap[last, word] = heap[last, word], heap[0, word]
        _sift_down(heap, last, 0)
    for i in range(wanted):
        for word in range(CANDIDATE):
            heap[i, word] = heap[size - wanted + i, word]
    state[USED] = below + wanted
    if wanted == job[LIMIT] - state[BELOW]:
        state[ID_CUT] = heap[0, FIRST_ID]  # the largest, for it came last


@compiled("int64(int64[::1], int64[:,::1], int64, int64, int64[::1], int32[::1])")
def _merge(job: Any, heap: Any, size: int, filled: int, out_places: Any, out_distances: Any) -> int:
    """Append the places of a heap of candidates at one distance, by ascending id, until the answer is full.

    Args:
        job: the job.
        heap: (at least size, CANDIDATE) int64: of each group the next place that may be found, its id, and the end.
        size: groups, none of them empty.
        filled: places in the answer; the new number is returned.
        out_places: (k,) int64.
        out_distances: (k,) int32.
    """
    while size > 0 and filled < out_places.shape[0]:
        out_places[filled] = heap[0, PLACE]
        out_distances[filled] = heap[0, DISTANCE]
        filled += 1
        place = next_allowed(job, heap[0, PLACE] + 1, heap[0, END])
        if place < heap[0, END]:
            heap[0, PLACE], heap[0, FIRST_ID] = place, id_at(job, place)
        else:
            size -= 1
            for word in range(CANDIDATE):
                heap[0, word] = heap[size, word]
        _sift_down(heap, size, 0)
    return filled


@compiled("void(int64[::1], int64, int64, int64, int64[::1], int64[::1], int64[:,::1])")
def _visit(job: Any, query: int, bucket: int, scratch: int, state: Any, histogram: Any, candidates: Any) -> None:
    """Make candidates of a bucket's groups that are no farther than the cut, and lower the cut.

    Args:
        job: the job.
        query: address of the query.
        bucket: its number.
        scratch: address of memory for one bucket.
        state: (STATE,) int64: candidates, the cut (the k-th distance so far, or one past the largest), places below
            it, and the largest first id that a group at the cut may have.
        histogram: (levels + 1,) int64, places at each distance.
        candidates: (room, CANDIDATE) int64: id and place of a group's first place that may be found, its end, distance.
    """
    near = measure(job, query, bucket, state[CUT], scratch)
    if near == 0:
        return
    if state[USED] + BUCKET > candidates.shape[0]:
        _forget_far(job, state, candidates)
    measured = carray(pointer_u16(scratch), BUCKET)
    starts = carray(pointer_i32(job[STARTS]), job[COUNT] + 1)
    k = job[LIMIT]
    while near != 0:
        i = trailing_zeros(near)
        near &= near - numba.uint64(1)
        distance = np.int64(measured[numba.uint64(i)])
        if distance > state[CUT]:
            continue
        group = bucket * BUCKET + i
        end = np.int64(starts[group + 1])
        place = next_allowed(job, np.int64(starts[group]), end)
        if place == end:
            continue
        first_id = id_at(job, place)
        if distance == state[CUT] and first_id > state[ID_CUT]:
            continue
        used = state[USED]
        candidates[used, FIRST_ID], candidates[used, PLACE] = first_id, place
        candidates[used, END], candidates[used, DISTANCE] = end, distance
        state[USED] += 1
        places = count_allowed(job, place, end, k)
        histogram[distance] += places
        if distance < state[CUT]:
            state[BELOW] += places
            while state[BELOW] >= k:
                state[ID_CUT] = _ANY_ID
                state[CUT] -= 1
                state[BELOW] -= histogram[state[CUT]]


@entry("void(int64, int64)")
def search_clusters(job_address: int, participant: int) -> None:
    """Take queries until none is left and write each one's first ``LIMIT`` places, in (distance, id) order."""
    job = carray(pointer_i64(job_address), WORDS)
    k, buckets, levels = job[LIMIT], job[BUCKETS], 8 * job[WIDTH] + 1
    at = job[SCRATCH] + 8 * participant * job[SCRATCH_WORDS]
    candidates = carray(pointer_i64(at), (job[ROOM], CANDIDATE))
    at += 8 * CANDIDATE * job[ROOM]
    histogram = carray(pointer_i64(at), levels + 1)
    state = carray(pointer_i64(at + 8 * (levels + 1)), STATE)
    bounds = at + 8 * (levels + 1 + STATE)
    scratch = bounds + 2 * ((buckets + BUCKET - 1) // BUCKET * BUCKET)
    out_distances = carray(pointer_i32(job[OUT_DISTANCES]), (job[QUERY_COUNT], k))
    out_places = carray(pointer_i64(job[OUT_PLACES]), (job[QUERY_COUNT], k))
    while True:
        q = atomic_add(job_address + 8 * NEXT, 1)
        if q >= job[QUERY_COUNT]:
            return
        query = job[QUERIES] + q * job[QUERY_BYTES]
        bound_buckets(job, query, bounds)
        for distance in range(levels + 1):
            histogram[distance] = 0
        state[USED], state[CUT], state[BELOW], state[ID_CUT] = 0, levels, 0, _ANY_ID
        visited = level = np.int64(0)  # bounds below the level are done
        while level <= state[CUT] and level < levels:
            # Level by level until there are k places; what is left then lies within the cut: one sweep, any order.
            last = level if state[CUT] == levels else state[CUT]
            for first in range(0, buckets, BUCKET):
                todo = bits_below(bounds + 2 * first, min(last, state[CUT]) + 1) & ~bits_below(
                    bounds + 2 * first, level
                )
                while todo != 0:
                    _visit(job, query, first + trailing_zeros(todo), scratch, state, histogram, candidates)
                    todo &= todo - numba.uint64(1)
                    visited += 1
            level = last + 1
        atomic_add(job_address + 8 * VISITED, visited)
        filled = done = np.int64(0)
        for distance in range(min(levels, state[CUT] + 1)):
            if histogram[distance] == 0 or filled == k:
                continue
            size = _gather(candidates, done, state[USED], distance)
            filled = _merge(job, candidates[done:], size, filled, out_places[q], out_distances[q])
            done += size
