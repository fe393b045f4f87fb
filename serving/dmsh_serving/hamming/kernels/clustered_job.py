"""What the compiled search of clustered codes is made of: the words of a job, buckets and their bounds, ids, filters.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.intrinsics import (
    bits_true,
    call_kernel,
    carray,
    pointer_i32,
    pointer_i64,
    pointer_u8,
    pointer_u16,
    pointer_u64,
    popcount,
    trailing_zeros,
)

BUCKET: Final = 64

# Words of a job.
(
    NEXT, NEAR, ARRANGE, CODES, WIDTH, COUNT, BUCKETS, SHARED, VALUES, STARTS, IDS, ID_BYTES, PLACES,
    ALLOWED, QUERIES, QUERY_BYTES, QUERY_COUNT, LIMIT, OUT_DISTANCES, OUT_PLACES, VISITED, ROOM, SCRATCH,
    SCRATCH_WORDS, WORDS,
) = range(25)  # fmt: skip


@numba.njit(nogil=True, error_model="numpy")
def bound_buckets(job: Any, query: Any, out: Any) -> None:
    """Write the bound of every bucket to ``out``, uint16, and the largest value behind the last."""
    buckets = job[BUCKETS]
    bounds = carray(pointer_u16(out), (buckets + BUCKET - 1) // BUCKET * BUCKET)
    bounds[buckets:] = 65535
    bounds[:buckets] = 0
    for word in range(job[QUERY_BYTES] // 8):
        part = carray(pointer_u64(query), word + 1)[word]
        shared = carray(pointer_u64(job[SHARED] + 8 * word * buckets), buckets)
        values = carray(pointer_u64(job[VALUES] + 8 * word * buckets), buckets)
        for bucket in range(buckets):
            bounds[bucket] += popcount((part ^ values[bucket]) & shared[bucket])


@numba.njit(nogil=True, error_model="numpy")
def measure(job: Any, query: Any, bucket: Any, limit: Any, scratch: Any) -> Any:
    """Measure the codes of a bucket; the distances begin at ``scratch``; return those up to ``limit`` as bits."""
    first = bucket * BUCKET
    count = min(BUCKET, job[COUNT] - first)
    codes = job[CODES] + first * job[WIDTH]
    if job[COUNT] - first < 2 * BUCKET:  # in place, up to a vector beyond the bucket is read
        call_kernel(job[ARRANGE], codes, job[COUNT] - first, count, scratch + 2 * BUCKET)
        codes = scratch + 2 * BUCKET
    near = call_kernel(job[NEAR], codes, limit + 1, query, scratch)
    return near if count == BUCKET else near & ((numba.uint64(1) << numba.uint64(count)) - numba.uint64(1))


@numba.njit(nogil=True, error_model="numpy")
def id_at(job: Any, place: Any) -> Any:
    """Return the id at a place, whichever of its two widths the ids have."""
    if job[ID_BYTES] == 4:
        return np.int64(carray(pointer_i32(job[IDS]), place + 1)[place])
    return carray(pointer_i64(job[IDS]), place + 1)[place]


@numba.njit(nogil=True, error_model="numpy")
def _flags_from(job: Any, place: Any) -> Any:
    """Return a word whose bit i is set where place + i is one that may be found; 0 beyond the last place."""
    if place + 64 <= job[PLACES]:
        return bits_true(job[ALLOWED] + place)
    allowed = carray(pointer_u8(job[ALLOWED]), job[PLACES])
    flags = numba.uint64(0)
    for i in range(job[PLACES] - place):
        flags |= numba.uint64(allowed[place + i] != 0) << numba.uint64(i)
    return flags


@numba.njit(nogil=True, error_model="numpy")
def count_allowed(job: Any, place: Any, end: Any, most: Any) -> Any:
    """Return how many places from ``place`` up to ``end`` may be found, or ``most`` if they are more."""
    if job[ALLOWED] == 0:
        return min(most, end - place)
    count = np.int64(0)
    while place < end and count < most:
        flags = _flags_from(job, place)
        if end - place < 64:
            flags &= (numba.uint64(1) << numba.uint64(end - place)) - numba.uint64(1)
        count += np.int64(popcount(flags))
        place += 64
    return min(most, count)


@numba.njit(nogil=True, error_model="numpy")
def next_allowed(job: Any, place: Any, end: Any) -> Any:
    """Return the first place from ``place`` on that may be found, or ``end``."""
    if job[ALLOWED] == 0:
        return place
    while place < end:
        flags = _flags_from(job, place)
        if flags != 0:
            return min(end, place + trailing_zeros(flags))
        place += 64
    return end
