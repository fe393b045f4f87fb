"""Exact Hamming search in compiled code: batches of queries, scanned by all participants, their candidates merged.

Imports numba, so it is itself imported on first use. :mod:`dmsh_serving.hamming.kernels.scan` gathers the candidates.

If k is large, every participant would gather many candidates before its cut is low. So the cut begins at a guess,
made from a few groups spread over the codes. If the guess is too low, the query has fewer than k answers and is scanned
again without a guess. So a bad guess costs time, never an answer.
"""

from typing import Any, Final

import numpy as np

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming.kernels.blocks import GROUP, kernel_at
from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import (
    address_of,
    bits_below,
    bytes_read,
    call_kernel,
    line_from,
    popcount,
    record_at,
    record_type,
    types,
)
from dmsh_serving.hamming.kernels.memory import LINE
from dmsh_serving.hamming.kernels.scan import SCAN_JOB, memory_bytes, memory_of

__all__ = ["search_batches"]

SAMPLE_GROUPS: Final = 256  # the most groups that a guess looks at
RUN_GROUPS: Final = 8  # groups in a row: jumping elsewhere costs as much as reading these

_job_at = record_at(SCAN_JOB)
_JOB_BYTES: Final = SCAN_JOB.itemsize
_job = record_type(SCAN_JOB)


@compiled(types.void(_job, types.int64[::1], types.boolean))
def _first_cuts(job: Any, cuts: Any, guess: bool) -> None:
    """Write the cut that each query begins with: a guess from a sample, or a cut that lets every code in.

    Args:
        job: the SCAN_JOB, its queries in place.
        cuts: (at least queries,) int64.
        guess: False to let every code in.
    """
    kernel, count, k, levels = kernel_at(job.kernel), job.count, job.k, job.levels
    for q in range(job.query_count):
        cuts[q] = levels
    # Choose the sample so that about 16 of its codes belong to the true top k. Below 1 it would tell nothing.
    sample = max(1, min(SAMPLE_GROUPS, count // (4 * k)))
    in_run = min(sample, RUN_GROUPS)
    runs = sample // in_run
    sample = in_run * runs
    expected = sample * GROUP * k / count
    rank = expected + 2.5 * np.sqrt(expected) + 1  # for an independent sample, too low once in a hundred times
    if not guess or job.allowed != 0 or expected < 1 or rank > sample * GROUP / 2 or 16 * sample * GROUP > count:
        return
    measured = np.empty(sample * GROUP, np.uint16)
    for q in range(job.query_count):
        for run in range(runs):
            # At least one group follows the run: row_near may read beyond its own.
            first = (count // GROUP - in_run - 1) * run // runs * GROUP
            for group in range(in_run):
                codes = job.codes + (first + group * GROUP) * job.width
                out = np.int64(measured.ctypes.data) + 2 * GROUP * (in_run * run + group)
                call_kernel(kernel.row_near, codes, 0, job.queries + q * kernel.slot, out)
        low, high = 0, levels  # find the lowest cut that has enough of the sample below it
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
    measured[0] = 0  # numba frees an array after its last use, and does not count the use of its address


@compiled("void(int32[::1], int64[::1], int64, int64[::1], int32[::1], int64[::1])")
def _counting_sort(distances: Any, rows: Any, used: int, place: Any, out_distances: Any, out_rows: Any) -> None:
    """Sort ``used`` candidates stably by distance; write the first len(out), and leave the rest of out as it is."""
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


@compiled(types.int64(_job, types.int64[::1], types.int64, types.uint8[:, ::1], types.int64[::1]))
def _keep_too_low(job: Any, cuts: Any, participants: int, padded: Any, wanted: Any) -> int:
    """Move the queries whose guessed cut was too low (fewer than k candidates) to the front; return how many."""
    kept = 0
    for q in range(job.query_count):
        found = np.int64(0)
        for p in range(participants):
            found += memory_of(job, p).states[q].used
        if found < job.k and cuts[q] < job.levels:
            wanted[kept] = wanted[q]
            padded[kept] = padded[q]
            kept += 1
    return kept


@compiled(types.int64(_job, types.int64, types.int64))
def _common_cut(job: Any, participants: int, q: int) -> Any:
    """Return the k-th distance among the candidates of all participants, or ``levels`` if they are fewer than k."""
    found = np.int64(0)
    for distance in range(job.levels):
        for p in range(participants):
            memory = memory_of(job, p)
            if memory.states[q].used > 0:  # a participant that never began has histograms full of garbage
                found += memory.histograms[q, distance]
        if found >= job.k:
            return distance
    return job.levels


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
    """Merge ``more`` candidates, except those beyond the cut, into ``size`` others by row; return their number."""
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


@compiled(types.void(_job, types.int64, types.int64[::1], types.int32[:, ::1], types.int64[:, ::1]))
def _finish(job: Any, participants: int, wanted: Any, out_distances: Any, out_rows: Any) -> None:
    """Merge the candidates of all participants and write each query's first k, in (distance, row) order.

    Args:
        job: the SCAN_JOB, done by all participants.
        participants: at least 1; a participant that never began has no candidates.
        wanted: (at least query_count,) int64, the row of each query in ``out``.
        out_distances: (all queries, k) int32, filled with the padding.
        out_rows: (all queries, k) int64, likewise.
    """
    place = np.empty(job.levels, np.int64)
    if participants == 1:
        memory = memory_of(job, 0)
        for q in range(job.query_count):
            _counting_sort(
                memory.distances[q], memory.rows[q], memory.states[q].used, place, out_distances[wanted[q]],
                out_rows[wanted[q]],
            )  # fmt: skip
        return
    room = participants * job.capacity
    merged, merged_distances = np.empty((2, room), np.int64), np.empty((2, room), np.int32)
    for q in range(job.query_count):
        cut = _common_cut(job, participants, q)
        total, here = 0, 0
        for p in range(participants):  # merged by row: the sort by distance is stable, so ties stay in row order
            memory = memory_of(job, p)
            total = _merge(
                merged[here], merged_distances[here], total, memory.rows[q], memory.distances[q],
                memory.states[q].used, cut, merged[1 - here], merged_distances[1 - here],
            )  # fmt: skip
            here = 1 - here
        _counting_sort(
            merged_distances[here], merged[here], total, place, out_distances[wanted[q]], out_rows[wanted[q]]
        )


@compiled(
    types.void(
        types.int64, types.int64, types.int64, types.int64[::1], bytes_read, types.int64, bytes_read, types.int64,
        types.int64, types.int32[:, ::1], types.int64[:, ::1],
    )
)  # fmt: skip
def search_batches(
    kernel_address: int,
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
        kernel_address: of a BLOCK_KERNEL, from ``Kernel.record_for``.
        scan_address: of :func:`scan`.
        share: address of :func:`dmsh_serving.hamming.kernels.helpers.share`.
        mailboxes: (helpers,) int64.
        codes: (count, width) uint8.
        allowed: address of a boolean for each code; 0 if all may be found.
        queries: (queries, width) uint8.
        batch: queries per scan.
        blocks: blocks per chunk.
        out_distances: (queries, k) int32, overwritten.
        out_rows: (queries, k) int64, overwritten.
    """
    count, width = codes.shape
    all_queries, k = out_rows.shape
    participants = mailboxes.shape[0] + 1
    kernel = kernel_at(kernel_address)
    levels, capacity = 8 * width + 1, 2 * k + GROUP
    each = memory_bytes(kernel, batch, capacity, levels)
    memory = np.empty(participants * each + LINE, np.uint8)
    job_memory = np.empty(_JOB_BYTES + LINE, np.uint8)
    padded = np.zeros((batch, kernel.slot), np.uint8)
    cuts, wanted = np.empty(batch, np.int64), np.empty(batch, np.int64)
    job = _job_at(line_from(job_memory))
    job.kernel, job.chunk = kernel_address, blocks * kernel.block
    job.codes, job.width, job.count, job.allowed = np.int64(codes.ctypes.data), width, count, allowed
    job.queries, job.first_cuts = np.int64(padded.ctypes.data), np.int64(cuts.ctypes.data)
    job.k, job.levels, job.batch, job.capacity = k, levels, batch, capacity
    job.memory, job.memory_bytes = line_from(memory), each
    for first in range(0, all_queries, batch):
        job.query_count = min(batch, all_queries - first)
        for q in range(job.query_count):
            wanted[q] = first + q
            for byte in range(width):
                padded[q, byte] = queries[first + q, byte]
            for column in range(k):
                out_distances[first + q, column] = PAD_DISTANCE
                out_rows[first + q, column] = PAD_ID
        guess = True
        while job.query_count > 0:  # in the second round, the queries whose guess was too low
            job.next_chunk.value = 0
            for participant in range(participants):
                states = memory_of(job, participant).states
                for q in range(batch):
                    states[q].used = states[q].cut = states[q].below = 0
            _first_cuts(job, cuts, guess)
            call_kernel(share, scan_address, address_of(job), np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
            _finish(job, participants, wanted, out_distances, out_rows)
            job.query_count = _keep_too_low(job, cuts, participants, padded, wanted)
            guess = False
    memory[0] = job_memory[0] = cuts[0] = padded[0, 0] = 0  # numba frees an array after its last use; see above
