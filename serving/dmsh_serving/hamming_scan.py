"""The compiled selection of exact Hamming search. Imports numba, so it is itself imported on first use.

Codes are looked at in row order, a block at a time. :mod:`dmsh_serving.hamming_kernel` names the groups of 64
that hold a code below the cut (the running k-th distance); only their distances are written out, and only
those below the cut become candidates. As rows come in ascending order, a later code at the cut itself can never
enter the answer, so "below the cut" is the exact test and ties need no further care.

Participants (threads) take chunks of codes by an atomic counter, each with candidates of its own; every
participant's chunks ascend, so the same holds within each of them.

Where k is large, every participant would gather many candidates before its cut is low. So the cut begins at a guess
from a few groups spread over the codes. A guess that proves too low, which fewer than k answers show, costs its query a
second scan without it, never an answer.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.cache_lines import LINE
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.native import (
    atomic_add,
    bits_below,
    bits_true,
    bytes_read,
    call_kernel,
    carray,
    compiled,
    entry,
    pointer_i32,
    pointer_i64,
    pointer_u16,
    popcount,
    trailing_zeros,
    types,
)

GROUP: Final = 64
SAMPLE_GROUPS: Final = 256  # at most so many are looked at for a first cut,
RUN_GROUPS: Final = 8  # so many in a row: a jump costs as much as they do

# Words of a job. The counter has a cache line of its own: every thread writes to it, and reads the others all the time.
NEXT: Final = 0
(
    HIT_GROUPS, NEAR, ARRANGE, IN_PLACE, CODE_BYTES, MASK_BLOCK, ROW_NEAR, SLOT, BLOCK, CHUNK, CODES, WIDTH, COUNT,
    ALLOWED, QUERIES, QUERY_COUNT, K, LEVELS, BATCH, CAPACITY, MEMORY, MEMORY_STRIDE, FIRST_CUTS,
) = range(LINE, LINE + 23)  # fmt: skip
WORDS: Final = LINE + 23
USED, CUT, BELOW, STATE = range(4)  # a state: candidates, the running k-th distance, candidates below it; its size


@numba.njit(nogil=True, error_model="numpy")
def _block_bytes(slot: int, block: int) -> Any:
    """Return the bytes of an arranged block, the distances of a group and a block's part of the mask, in this order."""
    return slot * block + 2 * GROUP + block


@numba.njit(nogil=True, error_model="numpy")
def _memory_words(slot: int, block: int, batch: int, capacity: int, levels: int) -> Any:
    """Return the 8-byte words of memory a participant needs: states, candidates, their histograms and a block.

    An arranged block comes first, on a cache line; then the states, which are to be zeros when the participant begins.
    """
    candidates = batch * (STATE + capacity + capacity // 2 + levels)
    return (candidates + _block_bytes(slot, block) // 8 + LINE - 1) // LINE * LINE


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


@numba.njit(nogil=True, error_model="numpy")
def _memory_of(job: Any, participant: int) -> Any:
    """Return a participant's states, candidate rows and distances, histograms, and the address of its scratch."""
    batch, capacity, levels = job[BATCH], job[CAPACITY], job[LEVELS]
    arranged = job[MEMORY] + 8 * participant * job[MEMORY_STRIDE]
    at = arranged + _block_bytes(job[SLOT], job[BLOCK])
    states = carray(pointer_i64(at), (batch, STATE))
    at += 8 * batch * STATE
    rows = carray(pointer_i64(at), (batch, capacity))
    at += 8 * batch * capacity
    histograms = carray(pointer_i64(at), (batch, levels))
    at += 8 * batch * levels
    return states, rows, carray(pointer_i32(at), (batch, capacity)), histograms, arranged


@entry("void(int64, int64)")
def scan(job_address: int, participant: int) -> None:
    """Take chunks of codes until none is left, and gather the candidates of every query among them."""
    job = carray(pointer_i64(job_address), WORDS)
    slot, block, width, count, k = job[SLOT], job[BLOCK], job[WIDTH], job[COUNT], job[K]
    queries = job[QUERY_COUNT]
    first_cuts = carray(pointer_i64(job[FIRST_CUTS]), queries)
    states, rows, distances, histograms, arranged = _memory_of(job, participant)
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
            states, _, _, _, _ = _memory_of(job, p)
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
            states, _, _, histograms, _ = _memory_of(job, p)
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
        states, rows, distances, _, _ = _memory_of(job, 0)
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
            states, rows, distances, _, _ = _memory_of(job, p)
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
        share: address of :func:`dmsh_serving.worker_kernel.share`.
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
    words = _memory_words(slot, block, batch, capacity, levels)
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
                at = job[MEMORY] + 8 * participant * words + _block_bytes(slot, block)
                states = carray(pointer_i64(at), batch * STATE)
                for i in range(batch * STATE):
                    states[i] = 0
            _first_cuts(job, cuts, guess)
            call_kernel(share, scan_address, job_address, np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
            _finish(job, participants, wanted, out_distances, out_rows)
            job[QUERY_COUNT] = _keep_too_low(job, cuts, participants, padded, wanted)
            guess = False
    memory[0] = job_memory[0] = cuts[0] = padded[0, 0] = 0
