"""The scan of exact Hamming search: each participant gathers candidates. Imports numba, so imported on first use.

A participant (a thread) takes one chunk of codes after the other, by an atomic counter, and looks at a chunk block by
block, in row order. :mod:`dmsh_serving.hamming.kernels.vectors` names the groups of 64 codes that hold one below the
cut (the k-th distance so far). Only the distances of these groups are written out, and only the codes below the cut
become candidates. Rows ascend, so a later code at the cut can never enter the answer: "below the cut" is the exact
test, and ties need no further care. Every participant has candidates of its own, and its chunks ascend too.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np

from dmsh_serving.hamming.kernels.blocks import GROUP, kernel_at, near_in_group, ready_block, scratch_bytes
from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    atomic_add,
    call_kernel,
    carray,
    pointer_i32,
    pointer_i64,
    pointer_to,
    pointer_u16,
    record_at,
    record_type,
    trailing_zeros,
    types,
)
from dmsh_serving.hamming.kernels.memory import COUNTER, LINE

__all__ = ["SCAN_JOB", "ScanMemory", "memory_bytes", "memory_of", "scan"]

SCAN_JOB: Final = np.dtype(
    [
        ("next_chunk", COUNTER),  # the first chunk that no participant has taken
        ("kernel", np.int64),  # address of a BLOCK_KERNEL
        ("chunk", np.int64),  # codes per chunk
        ("codes", np.int64),  # address, (count, width) uint8
        ("width", np.int64),
        ("count", np.int64),
        ("allowed", np.int64),  # address, (count,) bool; 0 if all codes may be found
        ("queries", np.int64),  # address, (batch, slot) uint8
        ("query_count", np.int64),  # of this scan, at most batch
        ("first_cuts", np.int64),  # address, (batch,) int64: the cut that each query begins with
        ("k", np.int64),
        ("levels", np.int64),
        ("batch", np.int64),  # queries that the memory has room for
        ("capacity", np.int64),  # candidates per query that the memory has room for
        ("memory", np.int64),  # address of the first participant's memory, on a cache line
        ("memory_bytes", np.int64),  # per participant
    ],
    align=True,
)
STATE: Final = np.dtype(
    [
        ("used", np.int64),  # candidates
        ("cut", np.int64),
        ("below", np.int64),  # candidates below the cut
    ],
    align=True,
)

_job_at = record_at(SCAN_JOB)
_state = record_type(STATE)
_pointer_state = pointer_to(_state)
_STATE_BYTES: Final = STATE.itemsize


class ScanMemory(NamedTuple):
    """What one participant writes to.

    Attributes:
        states: (batch,) STATE.
        rows: (batch, capacity) int64, those of the candidates.
        distances: (batch, capacity) int32, likewise.
        histograms: (batch, levels) int64, candidates at each distance.
        measured: address of the (GROUP,) uint16 distances of a group.
        scratch: address of the scratch memory for a block, on a cache line.
    """

    states: Any
    rows: Any
    distances: Any
    histograms: Any
    measured: Any
    scratch: Any


@numba.njit(nogil=True, error_model="numpy")
def memory_bytes(kernel: Any, batch: int, capacity: int, levels: int) -> Any:
    """Return the bytes of memory that a participant needs: whole cache lines."""
    candidates = batch * (_STATE_BYTES + 8 * capacity + 4 * capacity + 8 * levels)
    return (scratch_bytes(kernel) + 2 * GROUP + candidates + LINE - 1) // LINE * LINE


@numba.njit(nogil=True, error_model="numpy")
def memory_of(job: Any, participant: int) -> ScanMemory:
    """Return the memory of a participant; its states are to be zeros when it begins."""
    batch, capacity, levels = job.batch, job.capacity, job.levels
    scratch = job.memory + participant * job.memory_bytes
    measured = scratch + scratch_bytes(kernel_at(job.kernel))
    at = measured + 2 * GROUP
    states = carray(_pointer_state(at), (batch,))
    at += batch * _STATE_BYTES
    rows = carray(pointer_i64(at), (batch, capacity))
    at += 8 * batch * capacity
    histograms = carray(pointer_i64(at), (batch, levels))
    at += 8 * batch * levels
    return ScanMemory(states, rows, carray(pointer_i32(at), (batch, capacity)), histograms, measured, scratch)


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


@compiled(
    types.void(
        types.int64, types.uint64, types.int64, types.int64, _state, types.int32[::1], types.int64[::1],
        types.int64[::1],
    )
)  # fmt: skip
def _take(measured: int, mask: Any, first: int, k: int, state: Any, distances: Any, rows: Any, histogram: Any) -> None:
    """Make candidates of the codes of a group whose bit is set in ``mask``, as long as they are below the cut.

    Args:
        measured: address of the group's 64 uint16 distances.
        mask: bit i stands for row ``first`` + i.
        first: row of the group's first code.
        k: results wanted.
        state: the STATE of the query.
        distances: (capacity,) int32, of the candidates; if there is no room for 64 more, far ones are dropped first.
        rows: (capacity,) int64, likewise.
        histogram: (levels,) int64, candidates at each distance.
    """
    if state.used + GROUP > distances.shape[0]:
        state.used = _compact(distances, rows, state.used, histogram, state.cut, k)
    of_group = carray(pointer_u16(measured), GROUP)
    used, cut, below = state.used, state.cut, state.below
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
    state.used, state.cut, state.below = used, cut, below


@entry("void(int64, int64)")
def scan(job_address: int, participant: int) -> None:
    """Take chunks of codes until none is left, and gather the candidates of every query among them."""
    job = _job_at(job_address)
    kernel = kernel_at(job.kernel)
    slot, size, count, k, queries = kernel.slot, kernel.block, job.count, job.k, job.query_count
    first_cuts = carray(pointer_i64(job.first_cuts), queries)
    memory = memory_of(job, participant)
    for q in range(queries):
        memory.states[q].cut = first_cuts[q]
        for level in range(job.levels):
            memory.histograms[q, level] = 0
    while True:
        chunk = atomic_add(job.next_chunk, 1) * job.chunk
        if chunk >= count:
            return
        end = min(count, chunk + job.chunk)
        for first in range(chunk, end, size):
            block = ready_block(job, kernel, first, end, memory.scratch)
            if block.groups == 0:
                continue
            for q in range(queries):
                state, query = memory.states[q], job.queries + q * slot
                hits = call_kernel(kernel.hit_groups, block.codes, block.groups, query, state.cut)
                while hits != 0:
                    group = trailing_zeros(hits)
                    hits &= hits - numba.uint64(1)
                    near = near_in_group(kernel, block, group, state.cut, query, memory.measured)
                    if near != 0:
                        row = first + group * GROUP
                        _take(
                            memory.measured, near, row, k, state, memory.distances[q], memory.rows[q],
                            memory.histograms[q],
                        )  # fmt: skip
