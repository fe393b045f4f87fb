"""The clustered layout as compiled code sees it: codes in buckets, their bounds, the ids and filter behind each place.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled
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

__all__ = [
    "BUCKET",
    "CLUSTERS",
    "bound_buckets",
    "bound_count",
    "count_allowed",
    "describe_buckets",
    "id_at",
    "measure",
    "next_allowed",
]

BUCKET: Final = 64

CLUSTERS: Final = np.dtype(
    [
        ("near", np.int64),  # address, of ``vectors.BlockKernel.near`` for codes as they lie
        ("arrange", np.int64),  # address, likewise
        ("codes", np.int64),  # address, (count, width) uint8: all different, in ascending byte order
        ("width", np.int64),
        ("count", np.int64),
        ("buckets", np.int64),
        ("words", np.int64),  # 8-byte words per code of the following two and of the queries
        ("shared", np.int64),  # address, (words, buckets) uint64: the bits that all codes of a bucket share
        ("values", np.int64),  # address, (words, buckets) uint64: the values of these bits
        ("starts", np.int64),  # address, (count + 1,) int32: the first place of each code; the number of places last
        ("ids", np.int64),  # address, (places,) int32 or int64
        ("id_bytes", np.int64),  # 4 or 8
        ("places", np.int64),
    ],
    align=True,
)


@numba.njit(nogil=True, error_model="numpy")
def bound_count(buckets: Any) -> Any:
    """Return how many bounds a search keeps: one per bucket, rounded up to 64, as ``bits_below`` reads so many."""
    return (buckets + BUCKET - 1) // BUCKET * BUCKET


@compiled("void(int64, int64, int64, uint8[:,::1], uint8[:,::1])")
def describe_buckets(codes: int, width: int, count: int, shared: Any, values: Any) -> None:
    """Write which bits all codes of a bucket share, and their values; bytes beyond ``width`` are left as they are.

    Args:
        codes: address of the sorted codes.
        width: bytes per code.
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


@numba.njit(nogil=True, error_model="numpy")
def bound_buckets(clusters: Any, query: Any, out: Any) -> None:
    """Write the bound of every bucket to ``out``, uint16, and the largest number behind the last."""
    buckets = clusters.buckets
    bounds = carray(pointer_u16(out), bound_count(buckets))
    bounds[buckets:] = 65535
    bounds[:buckets] = 0
    for word in range(clusters.words):
        part = carray(pointer_u64(query), word + 1)[word]
        shared = carray(pointer_u64(clusters.shared + 8 * word * buckets), buckets)
        values = carray(pointer_u64(clusters.values + 8 * word * buckets), buckets)
        for bucket in range(buckets):
            bounds[bucket] += popcount((part ^ values[bucket]) & shared[bucket])


@numba.njit(nogil=True, error_model="numpy")
def measure(clusters: Any, query: Any, bucket: Any, limit: Any, scratch: Any) -> Any:
    """Write the distances of a bucket to ``scratch``, (64,) uint16; bit i says whether code i is within ``limit``."""
    first = bucket * BUCKET
    count = min(BUCKET, clusters.count - first)
    codes = clusters.codes + first * clusters.width
    if clusters.count - first < 2 * BUCKET:  # ``near`` reads up to a vector beyond the bucket
        call_kernel(clusters.arrange, codes, clusters.count - first, count, scratch + 2 * BUCKET)
        codes = scratch + 2 * BUCKET
    near = call_kernel(clusters.near, codes, limit + 1, query, scratch)
    return near if count == BUCKET else near & ((numba.uint64(1) << numba.uint64(count)) - numba.uint64(1))


@numba.njit(nogil=True, error_model="numpy")
def id_at(clusters: Any, place: Any) -> Any:
    """Return the id at a place, from ids of 4 or 8 bytes."""
    if clusters.id_bytes == 4:
        return np.int64(carray(pointer_i32(clusters.ids), place + 1)[place])
    return carray(pointer_i64(clusters.ids), place + 1)[place]


@numba.njit(nogil=True, error_model="numpy")
def _flags_from(job: Any, place: Any) -> Any:
    """Return a word whose bit i says whether place + i may be found; the bits beyond the last place are 0."""
    if place + 64 <= job.places:
        return bits_true(job.allowed + place)
    allowed = carray(pointer_u8(job.allowed), job.places)
    flags = numba.uint64(0)
    for i in range(job.places - place):
        flags |= numba.uint64(allowed[place + i] != 0) << numba.uint64(i)
    return flags


@numba.njit(nogil=True, error_model="numpy")
def count_allowed(job: Any, place: Any, end: Any, most: Any) -> Any:
    """Return how many places from ``place`` up to ``end`` may be found, but at most ``most``."""
    if job.allowed == 0:
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
    """Return the first place from ``place`` on that may be found, or ``end`` if there is none."""
    if job.allowed == 0:
        return place
    while place < end:
        flags = _flags_from(job, place)
        if flags != 0:
            return min(end, place + trailing_zeros(flags))
        place += 64
    return end
