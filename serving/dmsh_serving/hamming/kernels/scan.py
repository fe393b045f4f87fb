"""The scan of exact Hamming search: candidates gathered by each participant. Imports numba, so imported on first use.

Codes are looked at in row order, a block at a time. :mod:`dmsh_serving.hamming.kernels.vectors` names the groups of 64
that hold a code below the cut (the running k-th distance); only their distances are written out, and only
those below the cut become candidates. As rows come in ascending order, a later code at the cut itself can never
enter the answer, so "below the cut" is the exact test and ties need no further care.

Participants (threads) take chunks of codes by an atomic counter, each with candidates of its own; every
participant's chunks ascend, so the same holds within each of them.
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
    pointer_i64,
    pointer_u16,
    trailing_zeros,
)
from dmsh_serving.hamming.kernels.job import (
    ALLOWED,
    ARRANGE,
    BELOW,
    BLOCK,
    CHUNK,
    CODE_BYTES,
    CODES,
    COUNT,
    CUT,
    FIRST_CUTS,
    GROUP,
    HIT_GROUPS,
    IN_PLACE,
    LEVELS,
    MASK_BLOCK,
    NEAR,
    NEXT,
    QUERIES,
    QUERY_COUNT,
    SLOT,
    USED,
    WIDTH,
    WORDS,
    K,
    memory_of,
)


@compiled("int64(int32[::1], int64[::1], int64, int64[::1], int64, int64)")
def _compact(distances: Any, rows: Any, used: int, histogram: Any, cut: int, k: int) -> int:
    """Drop candidates that can no longer be among the first k; return how many stay (at most k)."""
    below = 0
    for i in range(used):
        below += distances[i] < cut
    room_at_cut = k - below
    kept = 0
    for i in range(used):
        distance = distances[i]
        if distance < cut or (distance == cut and room_at_cut > 0):
            room_at_cut -= distance == cut
            distances[kept] = distance
            rows[kept] = rows[i]
            kept += 1
    if cut < histogram.shape[0]:
        histogram[cut] = kept - below
    return kept


@compiled("void(int64, uint64, int64, int64, int64[::1], int32[::1], int64[::1], int64[::1])")
def _take(measured: int, mask: Any, first: int, k: int, state: Any, distances: Any, rows: Any, histogram: Any) -> None:
    """Make candidates of the rows of a group whose bit is set in ``mask``, as long as they are below the cut.

    Args:
        measured: address of the group's 64 uint16 distances.
        mask: bit i stands for row ``first`` + i.
        first: row of the group's first code.
        k: results wanted.
        state: (3,) int64, of the query.
        distances: (capacity,) int32 candidates, with room for 64 more or in need of a clean-up.
        rows: (capacity,) int64, likewise.
        histogram: (levels,) int64, candidates at each distance.
    """
    if state[USED] + GROUP > distances.shape[0]:
        state[USED] = _compact(distances, rows, state[USED], histogram, state[CUT], k)
    of_group = carray(pointer_u16(measured), GROUP)
    used, cut, below = state[USED], state[CUT], state[BELOW]
    while mask != 0:
        i = trailing_zeros(mask)
        mask &= mask - numba.uint64(1)
        distance = np.int64(of_group[numba.uint64(i)])
        if distance < cut:
            distances[used] = distance
            rows[used] = first + i
            used += 1
            histogram[distance] += 1
            below += 1
            while below >= k:
                cut -= 1
                below -= histogram[cut]
    state[USED], state[CUT], state[BELOW] = used, cut, below


@entry("void(int64, int64)")
def scan(job_address: int, participant: int) -> None:
    """Take chunks of codes until none is left, and gather the candidates of every query among them."""
    job = carray(pointer_i64(job_address), WORDS)
    slot, block, width, count, k = job[SLOT], job[BLOCK], job[WIDTH], job[COUNT], job[K]
    queries = job[QUERY_COUNT]
    first_cuts = carray(pointer_i64(job[FIRST_CUTS]), queries)
    states, rows, distances, histograms, arranged = memory_of(job, participant)
    measured = arranged + slot * block
    block_mask = measured + 2 * GROUP
    for q in range(queries):
        states[q, CUT] = first_cuts[q]
        for level in range(job[LEVELS]):
            histograms[q, level] = 0
    while True:
        chunk = atomic_add(job_address + 8 * NEXT, 1) * job[CHUNK]
        if chunk >= count:
            return
        for first in range(chunk, min(count, chunk + job[CHUNK]), block):
            in_block = min(block, count - first)
            groups = (in_block + GROUP - 1) // GROUP
            allowed = np.int64(0)
            if job[ALLOWED] != 0 or in_block < block:
                allowed = block_mask
                source = job[ALLOWED] + first if job[ALLOWED] != 0 else 0
                if call_kernel(job[MASK_BLOCK], source, in_block, groups, allowed) == 0:
                    continue
            codes = job[CODES] + first * width
            if job[IN_PLACE] == 0 or in_block < block or count - first - in_block < GROUP:
                call_kernel(job[ARRANGE], codes, count - first, in_block, arranged)
                codes = arranged
            for q in range(queries):
                query = job[QUERIES] + q * slot
                hits = call_kernel(job[HIT_GROUPS], codes, groups, query, states[q, CUT])
                while hits != 0:
                    group = trailing_zeros(hits)
                    hits &= hits - numba.uint64(1)
                    mask = ~numba.uint64(0) if allowed == 0 else bits_true(allowed + group * GROUP)
                    if mask == 0:
                        continue
                    mask &= call_kernel(
                        job[NEAR], codes + group * GROUP * job[CODE_BYTES], states[q, CUT], query, measured
                    )
                    if mask != 0:
                        row = first + group * GROUP
                        _take(measured, mask, row, k, states[q], distances[q], rows[q], histograms[q])
