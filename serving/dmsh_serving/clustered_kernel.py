"""The compiled part of :mod:`dmsh_serving.clustered_codes`. Imports numba, so it is itself imported on first use.

The different codes lie sorted, in buckets of 64. Of each bucket the bits are known that all its codes share (its
common prefix, and whatever else they have in common): the number of those that differ from the query's is a lower
bound of every distance in the bucket. Buckets are visited by ascending bound until k places are found, then in one
sweep all others whose bound is no more than the k-th distance. "No more", not "less": at the k-th distance the ids
decide, and a bucket not yet seen may hold smaller ones.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.native import (
    atomic_add,
    bits_below,
    call_kernel,
    carray,
    compiled,
    entry,
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
    NEXT, DISTANCES, SPREAD, SLOT, CODES, WIDTH, COUNT, BUCKETS, SHARED, VALUES, STARTS, IDS, ALLOWED, QUERIES,
    QUERY_BYTES, QUERY_COUNT, LIMIT, OUT_DISTANCES, OUT_PLACES, OFFSETS, VISITED, SCRATCH, SCRATCH_WORDS, WORDS,
) = range(24)  # fmt: skip


def scratch_words(slot: int, buckets: int, k: int) -> int:
    """Return the 8-byte words of memory a participant needs: bounds, one bucket's codes and distances, a heap."""
    return -(-buckets // BUCKET) * BUCKET // 4 + BUCKET // 4 + BUCKET * slot // 8 + 3 * k


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


@compiled("void(int64[::1], int64, int64)")
def _bound_buckets(job: Any, query: int, out: int) -> None:
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


@compiled("uint64(int64[::1], int64, int64, int64, int64)")
def _measure(job: Any, query: int, bucket: int, limit: int, scratch: int) -> Any:
    """Measure the codes of a bucket; the distances begin at ``scratch``; return those up to ``limit`` as bits."""
    first = bucket * BUCKET
    count = min(BUCKET, job[COUNT] - first)
    codes = job[CODES] + first * job[WIDTH]
    if job[WIDTH] != job[SLOT] or count < BUCKET:
        call_kernel(job[SPREAD], codes, job[COUNT] - first, count, scratch + 2 * BUCKET)
        codes = scratch + 2 * BUCKET
    call_kernel(job[DISTANCES], codes, 1, query, scratch)
    near = bits_below(scratch, limit + 1)
    return near if count == BUCKET else near & ((numba.uint64(1) << numba.uint64(count)) - numba.uint64(1))


@compiled("boolean(int64, int64, int64, int64)")
def _is_before(distance: int, its_id: int, other_distance: int, other_id: int) -> bool:
    return distance < other_distance or (distance == other_distance and its_id < other_id)


@compiled("void(int64[:,::1], int64, int64, int64, int64)")
def _sift_down(heap: Any, size: int, distance: int, its_id: int, place: int) -> None:
    """Put an entry in the place of the heap's first (its last in order), of ``size`` entries."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        other = child + 1
        if other < size and _is_before(heap[child, 0], heap[child, 1], heap[other, 0], heap[other, 1]):
            child = other
        if not _is_before(distance, its_id, heap[child, 0], heap[child, 1]):
            break
        heap[at] = heap[child]
        at = child
    heap[at, 0], heap[at, 1], heap[at, 2] = distance, its_id, place


@compiled("int64(int64[::1], int64[:,::1], int64, int64, int64)")
def _push_group(job: Any, heap: Any, size: int, group: int, distance: int) -> int:
    """Offer the places of a group to the heap, by ascending id, and return the heap's new size."""
    starts = carray(pointer_i64(job[STARTS]), job[COUNT] + 1)
    ids = carray(pointer_i64(job[IDS]), starts[job[COUNT]])
    allowed = carray(pointer_u8(job[ALLOWED]), starts[job[COUNT]])
    for place in range(starts[group], starts[group + 1]):
        if job[ALLOWED] != 0 and allowed[place] == 0:
            continue
        its_id = ids[place]
        if size < heap.shape[0]:
            at = size
            while at > 0:
                parent = (at - 1) // 2
                if not _is_before(heap[parent, 0], heap[parent, 1], distance, its_id):
                    break
                heap[at] = heap[parent]
                at = parent
            heap[at, 0], heap[at, 1], heap[at, 2] = distance, its_id, place
            size += 1
        elif _is_before(distance, its_id, heap[0, 0], heap[0, 1]):
            _sift_down(heap, size, distance, its_id, place)
        else:
            break  # the ids that follow are larger
    return size


@compiled("int64(int64[::1], int64, int64, int64[:,::1], int64, int64)")
def _visit(job: Any, query: int, bucket: int, heap: Any, size: int, scratch: int) -> int:
    """Offer a bucket's groups that are near enough to the heap, and return the heap's new size."""
    limit = heap[0, 0] if size == heap.shape[0] else 65534
    near = _measure(job, query, bucket, limit, scratch)
    measured = carray(pointer_u16(scratch), BUCKET)
    while near != 0:
        i = trailing_zeros(near)
        near &= near - numba.uint64(1)
        size = _push_group(job, heap, size, bucket * BUCKET + i, np.int64(measured[numba.uint64(i)]))
    return size


@entry("void(int64, int64)")
def search_clusters(job_address: int, participant: int) -> None:
    """Take queries until none is left and write each one's first ``LIMIT`` places, in (distance, id) order."""
    job = carray(pointer_i64(job_address), WORDS)
    k, buckets = job[LIMIT], job[BUCKETS]
    heap_address = job[SCRATCH] + 8 * participant * job[SCRATCH_WORDS]
    heap = carray(pointer_i64(heap_address), (k, 3))
    bounds = heap_address + 8 * 3 * k
    scratch = bounds + 2 * ((buckets + BUCKET - 1) // BUCKET * BUCKET)
    out_distances = carray(pointer_i32(job[OUT_DISTANCES]), (job[QUERY_COUNT], k))
    out_places = carray(pointer_i64(job[OUT_PLACES]), (job[QUERY_COUNT], k))
    while True:
        q = atomic_add(job_address + 8 * NEXT, 1)
        if q >= job[QUERY_COUNT]:
            return
        query = job[QUERIES] + q * job[QUERY_BYTES]
        _bound_buckets(job, query, bounds)
        size = visited = np.int64(0)
        level = np.int64(0)  # bounds below it are done
        while size < k and level <= 8 * job[WIDTH]:
            for first in range(0, buckets, BUCKET):
                at = bounds + 2 * first
                todo = bits_below(at, level + 1) & ~bits_below(at, level)
                while todo != 0:
                    size = _visit(job, query, first + trailing_zeros(todo), heap, size, scratch)
                    todo &= todo - numba.uint64(1)
                    visited += 1
            level += 1
        if size == k:
            for first in range(0, buckets, BUCKET):
                at = bounds + 2 * first
                todo = bits_below(at, heap[0, 0] + 1) & ~bits_below(at, level)
                while todo != 0:
                    size = _visit(job, query, first + trailing_zeros(todo), heap, size, scratch)
                    todo &= todo - numba.uint64(1)
                    visited += 1
        atomic_add(job_address + 8 * VISITED, visited)
        while size > 0:
            size -= 1
            out_distances[q, size] = heap[0, 0]
            out_places[q, size] = heap[0, 2]
            _sift_down(heap, size, heap[size, 0], heap[size, 1], heap[size, 2])


@entry("void(int64, int64)")
def search_clusters_radius(job_address: int, participant: int) -> None:
    """Take queries until none is left; count the places within ``LIMIT``, or write them where there is an output.

    ``OFFSETS`` is (queries + 1,) int64. The first pass leaves the count of query q in entry q + 1; the second, after
    they are summed up, writes from entry q on, in no particular order.
    """
    job = carray(pointer_i64(job_address), WORDS)
    radius, buckets, queries = job[LIMIT], job[BUCKETS], job[QUERY_COUNT]
    bounds = job[SCRATCH] + 8 * participant * job[SCRATCH_WORDS]
    scratch = bounds + 2 * ((buckets + BUCKET - 1) // BUCKET * BUCKET)
    measured = carray(pointer_u16(scratch), BUCKET)
    starts = carray(pointer_i64(job[STARTS]), job[COUNT] + 1)
    total = starts[job[COUNT]]
    allowed = carray(pointer_u8(job[ALLOWED]), total)
    offsets = carray(pointer_i64(job[OFFSETS]), queries + 1)
    writing = job[OUT_PLACES] != 0
    out_distances = carray(pointer_i32(job[OUT_DISTANCES]), offsets[queries])
    out_places = carray(pointer_i64(job[OUT_PLACES]), offsets[queries])
    while True:
        q = atomic_add(job_address + 8 * NEXT, 1)
        if q >= queries:
            return
        query = job[QUERIES] + q * job[QUERY_BYTES]
        _bound_buckets(job, query, bounds)
        found = offsets[q] if writing else 0
        for first in range(0, buckets, BUCKET):
            todo = bits_below(bounds + 2 * first, radius + 1)
            while todo != 0:
                bucket = first + trailing_zeros(todo)
                todo &= todo - numba.uint64(1)
                near = _measure(job, query, bucket, radius, scratch)
                while near != 0:
                    i = trailing_zeros(near)
                    near &= near - numba.uint64(1)
                    group = bucket * BUCKET + i
                    if not writing and job[ALLOWED] == 0:
                        found += starts[group + 1] - starts[group]
                        continue
                    for place in range(starts[group], starts[group + 1]):
                        if job[ALLOWED] != 0 and allowed[place] == 0:
                            continue
                        if writing:
                            out_distances[found] = measured[numba.uint64(i)]
                            out_places[found] = place
                        found += 1
        if not writing:
            offsets[q + 1] = found
