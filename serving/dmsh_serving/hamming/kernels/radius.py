"""The compiled part of :mod:`dmsh_serving.hamming.radius`. Imports numba, so it is itself imported on first use.

Codes are cut into parts of consecutive rows. One pass counts, for each part and query, the hits at each distance;
their running totals say where the next pass writes each hit, so the answer comes out in (distance, row) order
without a sort, whichever thread takes which part.
"""

from typing import Any

import numba
import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    atomic_add,
    bits_true,
    call_kernel,
    carray,
    pointer_i32,
    pointer_i64,
    pointer_u16,
    trailing_zeros,
)
from dmsh_serving.hamming.kernels.job import GROUP

# Words of a job.
(
    NEXT, HIT_GROUPS, NEAR, ARRANGE, IN_PLACE, CODE_BYTES, MASK_BLOCK, ROW_NEAR, SLOT, BLOCK, CODES, WIDTH, COUNT,
    ALLOWED, QUERIES, QUERY_COUNT, RADIUS, PART, PARTS, PLACES, OUT_DISTANCES, OUT_ROWS, SCRATCH, SCRATCH_STRIDE, WORDS,
) = range(25)  # fmt: skip


@entry("void(int64, int64)")
def scan_radius(job_address: int, participant: int) -> None:
    """Take parts until none is left; count their hits, or write them where ``OUT_ROWS`` is not 0.

    ``PLACES`` is (parts, queries, radius + 1) int64: counts after the first pass, on the second one the place
    of the next hit.
    """
    job = carray(pointer_i64(job_address), WORDS)
    slot, block, width, queries = job[SLOT], job[BLOCK], job[WIDTH], job[QUERY_COUNT]
    limit = job[RADIUS] + 1
    places = carray(pointer_i64(job[PLACES]), (job[PARTS], queries, limit))
    out_distances, out_rows = (
        carray(pointer_i32(job[OUT_DISTANCES]), 1 << 62),
        carray(pointer_i64(job[OUT_ROWS]), 1 << 62),
    )
    arranged = job[SCRATCH] + participant * job[SCRATCH_STRIDE]
    measured = arranged + slot * block
    block_mask = measured + 2 * GROUP
    of_group = carray(pointer_u16(measured), GROUP)
    while True:
        part = atomic_add(job_address + 8 * NEXT, 1)
        if part >= job[PARTS]:
            return
        end = min(job[COUNT], (part + 1) * job[PART])
        for first in range(part * job[PART], end, block):
            in_block = min(block, end - first)
            groups = (in_block + GROUP - 1) // GROUP
            allowed = np.int64(0)
            if job[ALLOWED] != 0 or in_block < block:
                allowed = block_mask
                source = job[ALLOWED] + first if job[ALLOWED] != 0 else 0
                if call_kernel(job[MASK_BLOCK], source, in_block, groups, allowed) == 0:
                    continue
            codes = job[CODES] + first * width
            if job[IN_PLACE] == 0 or in_block < block or job[COUNT] - first - in_block < GROUP:
                call_kernel(job[ARRANGE], codes, job[COUNT] - first, in_block, arranged)
                codes = arranged
            for q in range(queries):
                query = job[QUERIES] + q * slot
                hits = call_kernel(job[HIT_GROUPS], codes, groups, query, limit)
                while hits != 0:
                    group = trailing_zeros(hits)
                    hits &= hits - numba.uint64(1)
                    mask = ~numba.uint64(0) if allowed == 0 else bits_true(allowed + group * GROUP)
                    mask &= call_kernel(job[NEAR], codes + group * GROUP * job[CODE_BYTES], limit, query, measured)
                    while mask != 0:
                        i = trailing_zeros(mask)
                        mask &= mask - numba.uint64(1)
                        distance = np.int64(of_group[numba.uint64(i)])
                        at = places[part, q, distance]
                        places[part, q, distance] = at + 1
                        if job[OUT_ROWS] != 0:
                            out_distances[at] = distance
                            out_rows[at] = first + group * GROUP + i


@compiled("void(int64[:,:,::1], int64[::1])")
def places_from_counts(counts: Any, offsets: Any) -> None:
    """Turn the counts of hits (parts, queries, radius + 1) into the place of the first of each, in answer order.

    Args:
        counts: overwritten.
        offsets: (queries + 1,) int64, receives where each query's hits begin, and their number last.
    """
    total = 0
    for q in range(counts.shape[1]):
        offsets[q] = total
        for distance in range(counts.shape[2]):
            for part in range(counts.shape[0]):
                count = counts[part, q, distance]
                counts[part, q, distance] = total
                total += count
    offsets[counts.shape[1]] = total
