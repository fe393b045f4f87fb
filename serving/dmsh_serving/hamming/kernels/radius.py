"""The compiled part of :mod:`dmsh_serving.hamming.radius`. Imports numba, so it is itself imported on first use.

Codes are cut into parts of consecutive rows. The first pass counts the hits at each distance, for each part and query.
Running totals of these counts say where the second pass writes each hit. So the answer comes out in (distance, row)
order without a sort, whichever thread takes which part.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.blocks import GROUP, kernel_at, near_in_group, ready_block, scratch_bytes
from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    address_of,
    atomic_add,
    bytes_read,
    call_kernel,
    carray,
    line_from,
    pointer_i32,
    pointer_i64,
    pointer_u16,
    record_at,
    trailing_zeros,
    types,
)
from dmsh_serving.hamming.kernels.memory import COUNTER, LINE

__all__ = ["RADIUS_JOB", "scan_radius", "search_within"]

RADIUS_JOB: Final = np.dtype(
    [
        ("next_part", COUNTER),  # the first part that no participant has taken
        ("kernel", np.int64),  # address of a BLOCK_KERNEL
        ("codes", np.int64),  # address, (count, width) uint8
        ("width", np.int64),
        ("count", np.int64),
        ("allowed", np.int64),  # address, (count,) bool; 0 if all codes may be found
        ("queries", np.int64),  # address, (query_count, slot) uint8
        ("query_count", np.int64),
        ("radius", np.int64),
        ("part", np.int64),  # codes per part, a multiple of the block
        ("parts", np.int64),
        # Address, (parts, query_count, radius + 1) int64: after the first pass the hits at each distance, in the second
        # pass the position of the next hit in the answer.
        ("positions", np.int64),
        ("hits", np.int64),  # that the answer has places for; 0 in the first pass
        ("out_distances", np.int64),  # address, int32
        ("out_rows", np.int64),  # address, int64
        ("scratch", np.int64),  # address of the first participant's scratch memory, on a cache line
    ],
    align=True,
)

_job_at = record_at(RADIUS_JOB)
_JOB_BYTES: Final = RADIUS_JOB.itemsize


@numba.njit(nogil=True, error_model="numpy")
def _scratch_bytes(kernel: Any) -> Any:
    """Return the bytes of scratch memory that a participant needs: whole cache lines."""
    return scratch_bytes(kernel) + 2 * GROUP


@entry("void(int64, int64)")
def scan_radius(job_address: int, participant: int) -> None:
    """Take parts until none is left; count their hits in the first pass, write them in the second."""
    job = _job_at(job_address)
    kernel = kernel_at(job.kernel)
    queries, limit = job.query_count, job.radius + 1
    positions = carray(pointer_i64(job.positions), (job.parts, queries, limit))
    out_distances = carray(pointer_i32(job.out_distances), 1 << 62)
    out_rows = carray(pointer_i64(job.out_rows), 1 << 62)
    scratch = job.scratch + participant * _scratch_bytes(kernel)
    measured = scratch + scratch_bytes(kernel)
    of_group = carray(pointer_u16(measured), GROUP)
    while True:
        part = atomic_add(job.next_part, 1)
        if part >= job.parts:
            return
        end = min(job.count, (part + 1) * job.part)
        for first in range(part * job.part, end, kernel.block):
            block = ready_block(job, kernel, first, end, scratch)
            if block.groups == 0:
                continue
            for q in range(queries):
                query = job.queries + q * kernel.slot
                hits = call_kernel(kernel.hit_groups, block.codes, block.groups, query, limit)
                while hits != 0:
                    group = trailing_zeros(hits)
                    hits &= hits - numba.uint64(1)
                    near = near_in_group(kernel, block, group, limit, query, measured)
                    while near != 0:
                        i = trailing_zeros(near)
                        near &= near - numba.uint64(1)
                        distance = np.int64(of_group[numba.uint64(i)])
                        at = positions[part, q, distance]
                        positions[part, q, distance] = at + 1
                        if at < job.hits:  # codes that change meanwhile may give more hits than were counted
                            out_distances[at] = distance
                            out_rows[at] = first + group * GROUP + i


@compiled("void(int64[:,:,::1], int64[::1])")
def _positions_from_counts(counts: Any, offsets: Any) -> None:
    """Turn counts of hits (parts, queries, radius + 1) into the position of the first hit of each in the answer.

    Args:
        counts: overwritten.
        offsets: (queries + 1,) int64, overwritten: the position of each query's first hit, then the number of all hits.
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


@compiled(
    types.Tuple((types.int64[::1], types.int32[::1], types.int64[::1]))(
        types.int64, types.int64, types.int64, types.int64[::1], bytes_read, types.int64, bytes_read, types.int64,
        types.int64,
    )
)  # fmt: skip
def search_within(
    kernel_address: int,
    scan_address: int,
    share: int,
    mailboxes: Any,
    codes: Any,
    allowed: int,
    queries: Any,
    radius: int,
    part: int,
) -> Any:
    """Find all codes within ``radius`` of every query.

    Args:
        kernel_address: of a BLOCK_KERNEL, from ``Kernel.record_for``.
        scan_address: of :func:`scan_radius`.
        share: address of :func:`dmsh_serving.hamming.kernels.helpers.share`.
        mailboxes: (helpers,) int64.
        codes: (count, width) uint8.
        allowed: address of a boolean for each code; 0 if all may be found.
        queries: (queries, width) uint8.
        radius: at least 0.
        part: codes per part, a multiple of the block.

    Returns:
        offsets (queries + 1,) int64, distances int32 and rows int64, as in ``hamming.radius.RadiusResult``.
    """
    kernel = kernel_at(kernel_address)
    count, width = codes.shape
    parts = (count + part - 1) // part
    padded = np.zeros((queries.shape[0], kernel.slot), np.uint8)
    padded[:, :width] = queries
    positions = np.zeros((parts, queries.shape[0], radius + 1), np.int64)
    scratch = np.empty((mailboxes.shape[0] + 1) * _scratch_bytes(kernel) + LINE, np.uint8)
    job_memory = np.zeros(_JOB_BYTES + LINE, np.uint8)
    job = _job_at(line_from(job_memory))
    job.kernel, job.scratch = kernel_address, line_from(scratch)
    job.codes, job.width, job.count, job.allowed = np.int64(codes.ctypes.data), width, count, allowed
    job.queries, job.query_count, job.radius = np.int64(padded.ctypes.data), queries.shape[0], radius
    job.part, job.parts, job.positions = part, parts, np.int64(positions.ctypes.data)
    call_kernel(share, scan_address, address_of(job), np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
    offsets = np.empty(queries.shape[0] + 1, np.int64)
    _positions_from_counts(positions, offsets)
    distances, rows = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
    job.next_part.value = 0
    job.hits = offsets[-1]
    job.out_distances, job.out_rows = np.int64(distances.ctypes.data), np.int64(rows.ctypes.data)
    call_kernel(share, scan_address, address_of(job), np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
    # numba frees an array after its last use, and does not count the use of its address.
    padded[0, 0] = scratch[0] = job_memory[0] = positions[0, 0, 0] = 0
    return offsets, distances, rows
