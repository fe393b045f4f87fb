"""The compiled part of a search of clustered codes within a radius. Imports numba, so it is imported on first use."""

import numba
import numpy as np

from dmsh_serving.hamming.kernels.clustered_job import (
    BUCKET,
    BUCKETS,
    COUNT,
    LIMIT,
    NEXT,
    OFFSETS,
    OUT_DISTANCES,
    OUT_PLACES,
    QUERIES,
    QUERY_BYTES,
    QUERY_COUNT,
    SCRATCH,
    SCRATCH_WORDS,
    STARTS,
    WORDS,
    bound_buckets,
    count_allowed,
    measure,
    next_allowed,
)
from dmsh_serving.hamming.kernels.compile import entry
from dmsh_serving.hamming.kernels.intrinsics import (
    atomic_add,
    bits_below,
    carray,
    pointer_i32,
    pointer_i64,
    pointer_u16,
    trailing_zeros,
)


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
    starts = carray(pointer_i32(job[STARTS]), job[COUNT] + 1)
    offsets = carray(pointer_i64(job[OFFSETS]), queries + 1)
    writing = job[OUT_PLACES] != 0
    out_distances = carray(pointer_i32(job[OUT_DISTANCES]), offsets[queries])
    out_places = carray(pointer_i64(job[OUT_PLACES]), offsets[queries])
    while True:
        q = atomic_add(job_address + 8 * NEXT, 1)
        if q >= queries:
            return
        query = job[QUERIES] + q * job[QUERY_BYTES]
        bound_buckets(job, query, bounds)
        found = offsets[q] if writing else 0
        for first in range(0, buckets, BUCKET):
            todo = bits_below(bounds + 2 * first, radius + 1)
            while todo != 0:
                bucket = first + trailing_zeros(todo)
                todo &= todo - numba.uint64(1)
                near = measure(job, query, bucket, radius, scratch)
                while near != 0:
                    i = trailing_zeros(near)
                    near &= near - numba.uint64(1)
                    group = bucket * BUCKET + i
                    place, end = np.int64(starts[group]), np.int64(starts[group + 1])
                    if not writing:
                        found += count_allowed(job, place, end, end - place)
                        continue
                    place = next_allowed(job, place, end)
                    while place < end:
                        out_distances[found] = measured[numba.uint64(i)]
                        out_places[found] = place
                        found += 1
                        place = next_allowed(job, place + 1, end)
        if not writing:
            offsets[q + 1] = found
