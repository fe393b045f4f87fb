"""Exact Hamming search in compiled code: batches of queries, scanned by all participants, their candidates merged.

Imports numba, so it is itself imported on first use. :mod:`dmsh_serving.hamming.kernels.scan` gathers the candidates.

Where k is large, every participant would gather many candidates before its cut is low. So the cut begins at a guess
from a few groups spread over the codes. A guess that proves too low, which fewer than k answers show, costs its query a
second scan without it, never an answer.
"""

from typing import Any, Final

import numpy as np

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming.kernels.cache_lines import LINE
from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import (
    bits_below,
    bytes_read,
    call_kernel,
    carray,
    pointer_i64,
    popcount,
    types,
)
from dmsh_serving.hamming.kernels.job import (
    ALLOWED,
    BATCH,
    CAPACITY,
    CHUNK,
    CODES,
    COUNT,
    FIRST_CUTS,
    GROUP,
    LEVELS,
    MEMORY,
    MEMORY_STRIDE,
    NEXT,
    QUERIES,
    QUERY_COUNT,
    ROW_NEAR,
    SLOT,
    STATE,
    USED,
    WIDTH,
    WORDS,
    K,
    block_bytes,
    memory_of,
    memory_words,
)

SAMPLE_GROUPS: Final = 256  # at most so many are looked at for a first cut,
RUN_GROUPS: Final = 8  # so many in a row: a jump costs as much as they do


@compiled("void(int64[::1], int64[::1], boolean)")
def _first_cuts(job: Any, cuts: Any, guess: bool) -> None:
    """Write the cut that each query's scan begins with: a guess from a sample, or one that lets everything in.

    Args:
        job: the job, its queries in place.
        cuts: (at least queries,) int64.
        guess: False to let everything in.
    """
    count, k, slot, levels = job[COUNT], job[K], job[SLOT], job[LEVELS]
    for q in range(job[QUERY_COUNT]):
        cuts[q] = levels
    # So many that 16 of the sample are expected among the first k, or somewhat fewer in whole runs; fewer than 1 would
    # tell little.
    sample = max(1, min(SAMPLE_GROUPS, count // (4 * k)))
    in_run = min(sample, RUN_GROUPS)
    runs = sample // in_run
    sample = in_run * runs
    expected = sample * GROUP * k / count
    rank = expected + 2.5 * np.sqrt(expected) + 1  # too few once in a hundred times, were the sample independent
    if not guess or job[ALLOWED] != 0 or expected < 1 or rank > sample * GROUP / 2 or 16 * sample * GROUP > count:
        return
    measured = np.empty(sample * GROUP, np.uint16)
    for q in range(job[QUERY_COUNT]):
        for run in range(runs):
            first = (count // GROUP - in_run - 1) * run // runs * GROUP  # a group follows, as in place is read
            for group in range(in_run):
                codes = job[CODES] + (first + group * GROUP) * job[WIDTH]
                out = np.int64(measured.ctypes.data) + 2 * GROUP * (in_run * run + group)
                call_kernel(job[ROW_NEAR], codes, 0, job[QUERIES] + q * slot, out)
        low, high = 0, levels  # the lowest cut below which enough of the sample are
        while low < high:
            middle = (low + high) // 2
            below = np.int64(0)
            for group in range(sample):
                below += np.int64(popcount(bits_below(np.int64(measured.ctypes.data) + 2 * GROUP * group, middle)))
            if below >= rank:
                high = middle
            else:
                low = middle + 1
        cuts[q] = low
    measured[0] = 0  # numba frees an array after its last use, and addresses are none


@compiled("void(int32[::1], int64[::1], int64, int64[::1], int32[::1], int64[::1])")
def _counting_sort(distances: Any, rows: Any, used: int, place: Any, out_distances: Any, out_rows: Any) -> None:
    """Write the first len(out) of ``used`` candidates, stably sorted by distance; the rest of out is untouched."""
    place[:] = 0
    for i in range(used):
        place[distances[i]] += 1
    total = 0
    for distance in range(place.shape[0]):
        count = place[distance]
        place[distance] = total
        total += count
    for i in range(used):
        target = place[distances[i]]
        place[distances[i]] = target + 1
        if target < out_rows.shape[0]:
            out_distances[target] = distances[i]
            out_rows[target] = rows[i]


@compiled("int64(int64[::1], int64[::1], int64, uint8[:,::1], int64[::1])")
def _keep_too_low(job: Any, cuts: Any, participants: int, padded: Any, wanted: Any) -> int:
    """Bring the queries that began at a guessed cut and have fewer than k candidates to the front; return how many."""
    kept = 0
    for q in range(job[QUERY_COUNT]):
        found = np.int64(0)
        for p in range(participants):
            states, _, _, _, _ = memory_of(job, p)
            found += states[q, USED]
        if found < job[K] and cuts[q] < job[LEVELS]:
            wanted[kept] = wanted[q]
            padded[kept] = padded[q]
            kept += 1
    return kept


@compiled("int64(int64[::1], int64, int64)")
def _common_cut(job: Any, participants: int, q: int) -> Any:
    """Return the k-th distance over the candidates of all participants, or the largest where there are fewer."""
    found = np.int64(0)
    for distance in range(job[LEVELS]):
        for p in range(participants):
            states, _, _, histograms, _ = memory_of(job, p)
            if states[q, USED] > 0:  # else it may never have begun, and its histograms hold anything
                found += histograms[q, distance]
        if found >= job[K]:
            return distance
    return job[LEVELS]


@compiled("int64(int64[::1], int32[::1], int64, int64[::1], int32[::1], int64, int64, int64[::1], int32[::1])")
def _merge(
    rows: Any,
    distances: Any,
    size: int,
    more_rows: Any,
    more_distances: Any,
    more: int,
    cut: int,
    out_rows: Any,
    out_distances: Any,
) -> int:
    """Merge ``more`` candidates, those up to the cut, into ``size`` of ascending rows; return how many are written."""
    total = head = 0
    for i in range(more):
        if more_distances[i] > cut:
            continue
        row = more_rows[i]
        while head < size and rows[head] < row:
            out_rows[total], out_distances[total] = rows[head], distances[head]
            total += 1
            head += 1
        out_rows[total], out_distances[total] = row, more_distances[i]
        total += 1
    while head < size:
        out_rows[total], out_distances[total] = rows[head], distances[head]
        total += 1
        head += 1
    return total


@compiled("void(int64[::1], int64, int64[::1], int32[:,::1], int64[:,::1])")
def _finish(job: Any, participants: int, wanted: Any, out_distances: Any, out_rows: Any) -> None:
    """Merge the candidates of all participants and write each query's first k, in (distance, row) order.

    Args:
        job: the job, scanned.
        participants: at least 1; those that never began have no candidates.
        wanted: (at least the job's queries,) int64, where each is in ``out``.
        out_distances: (all queries, k) int32, filled with the padding.
        out_rows: (all queries, k) int64, likewise.
    """
    place = np.empty(job[LEVELS], np.int64)
    if participants == 1:
        states, rows, distances, _, _ = memory_of(job, 0)
        for q in range(job[QUERY_COUNT]):
            used = states[q, USED]
            _counting_sort(distances[q], rows[q], used, place, out_distances[wanted[q]], out_rows[wanted[q]])
        return
    room = participants * job[CAPACITY]
    merged, merged_distances = np.empty((2, room), np.int64), np.empty((2, room), np.int32)
    for q in range(job[QUERY_COUNT]):
        cut = _common_cut(job, participants, q)
        total, here = 0, 0
        for p in range(participants):  # by row, so that the sort by distance, which is stable, leaves ties in row order
            states, rows, distances, _, _ = memory_of(job, p)
            total = _merge(
                merged[here], merged_distances[here], total, rows[q], distances[q], states[q, USED], cut,
                merged[1 - here], merged_distances[1 - here],
            )  # fmt: skip
            here = 1 - here
        _counting_sort(
            merged_distances[here], merged[here], total, place, out_distances[wanted[q]], out_rows[wanted[q]]
        )


@compiled(
    types.void(
        types.int64[::1], types.int64, types.int64, types.int64[::1], bytes_read, types.int64, bytes_read, types.int64,
        types.int64, types.int32[:, ::1], types.int64[:, ::1],
    )
)  # fmt: skip
def search_batches(
    kernel: Any,
    scan_address: int,
    share: int,
    mailboxes: Any,
    codes: Any,
    allowed: int,
    queries: Any,
    batch: int,
    blocks: int,
    out_distances: Any,
    out_rows: Any,
) -> None:
    """Search batch by batch, with memory that does not grow with the queries.

    Args:
        kernel: (9,) int64, of ``Kernel.words_for``.
        scan_address: of :func:`scan`.
        share: address of :func:`dmsh_serving.hamming.kernels.helpers.share`.
        mailboxes: (helpers,) int64.
        codes: (count, width) uint8.
        allowed: address of a boolean for each code; 0 where all are.
        queries: (queries, width) uint8.
        batch: queries a scan.
        blocks: that a thread takes at a time.
        out_distances: (queries, k) int32, overwritten.
        out_rows: (queries, k) int64, overwritten.
    """
    count, width = codes.shape
    all_queries, k = out_rows.shape
    participants = mailboxes.shape[0] + 1
    slot, block = kernel[7], kernel[8]
    levels, capacity = 8 * width + 1, 2 * k + GROUP
    words = memory_words(slot, block, batch, capacity, levels)
    memory = np.empty(participants * words + LINE, np.int64)
    job_memory = np.empty(WORDS + LINE, np.int64)
    job_address = (np.int64(job_memory.ctypes.data) + 63) // 64 * 64
    job = carray(pointer_i64(job_address), WORDS)
    for i in range(9):
        job[LINE + i] = kernel[i]
    job[CHUNK], job[CODES], job[WIDTH] = blocks * block, np.int64(codes.ctypes.data), width
    job[COUNT], job[ALLOWED] = count, allowed
    job[K], job[LEVELS], job[BATCH], job[CAPACITY] = k, levels, batch, capacity
    job[MEMORY], job[MEMORY_STRIDE] = (np.int64(memory.ctypes.data) + 63) // 64 * 64, words
    padded = np.zeros((batch, slot), np.uint8)
    job[QUERIES] = np.int64(padded.ctypes.data)
    cuts, wanted = np.empty(batch, np.int64), np.empty(batch, np.int64)
    job[FIRST_CUTS] = np.int64(cuts.ctypes.data)
    for first in range(0, all_queries, batch):
        job[QUERY_COUNT] = min(batch, all_queries - first)
        for q in range(job[QUERY_COUNT]):
            wanted[q] = first + q
            for byte in range(width):
                padded[q, byte] = queries[first + q, byte]
            for column in range(k):
                out_distances[first + q, column] = PAD_DISTANCE
                out_rows[first + q, column] = PAD_ID
        guess = True
        while job[QUERY_COUNT] > 0:  # then those alone whose guess was too low, without one
            job[NEXT] = 0
            for participant in range(participants):
                at = job[MEMORY] + 8 * participant * words + block_bytes(slot, block)
                states = carray(pointer_i64(at), batch * STATE)
                for i in range(batch * STATE):
                    states[i] = 0
            _first_cuts(job, cuts, guess)
            call_kernel(share, scan_address, job_address, np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
            _finish(job, participants, wanted, out_distances, out_rows)
            job[QUERY_COUNT] = _keep_too_low(job, cuts, participants, padded, wanted)
            guess = False
    memory[0] = job_memory[0] = cuts[0] = padded[0, 0] = 0
