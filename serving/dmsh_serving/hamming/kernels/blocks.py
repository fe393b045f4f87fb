"""A block of codes: the compiled functions that look at it, and how a scan makes it ready for them.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import bits_true, call_kernel, carray, pointer_u8, record_at

__all__ = ["BLOCK_KERNEL", "GROUP", "ReadyBlock", "kernel_at", "near_in_group", "ready_block", "scratch_bytes"]

GROUP: Final = 64  # codes whose smallest distance is compared with the cut in one step

# Every address is that of a function; ``vectors.BlockKernel`` says what each does.
BLOCK_KERNEL: Final = np.dtype(
    [
        ("hit_groups", np.int64),  # address
        ("near", np.int64),  # address
        ("arrange", np.int64),  # address
        ("in_place", np.bool_),  # whether a block can be read where the gallery holds it, if GROUP more codes follow
        ("code_bytes", np.int64),  # per code, as hit_groups and near read them
        ("row_near", np.int64),  # address of a ``near`` that reads codes as the gallery holds them
        ("slot", np.int64),  # bytes
        ("block", np.int64),  # codes per block, a multiple of GROUP
    ],
    align=True,
)

kernel_at = record_at(BLOCK_KERNEL)


class ReadyBlock(NamedTuple):
    """A block as the functions of its kernel read it.

    Attributes:
        codes: address.
        allowed: address of a boolean for each code, true if it may be found; 0 if all may.
        groups: number of groups; 0 if none of the codes may be found.
    """

    codes: Any
    allowed: Any
    groups: Any


@numba.njit(nogil=True, error_model="numpy")
def scratch_bytes(kernel: Any) -> Any:
    """Return the bytes that :func:`ready_block` needs as scratch memory: whole cache lines."""
    return kernel.slot * kernel.block + kernel.block


@compiled("uint8(int64, int64, int64, int64)")
def _copy_mask(allowed: int, count: int, groups: int, out: int) -> Any:
    """Copy ``count`` booleans into whole groups, false beyond them; return 0 if none is true.

    Args:
        allowed: address; 0 stands for booleans that are all true.
        count: at most 64 x ``groups``.
        groups: number of groups.
        out: address.
    """
    target = carray(pointer_u8(out), groups * GROUP)
    target[count:] = 0
    if allowed == 0:
        target[:count] = 1
        return np.uint8(1)
    source = carray(pointer_u8(allowed), count)
    some = np.uint8(0)
    for i in range(count):
        target[i] = source[i]
        some |= source[i]
    return some


@numba.njit(nogil=True, error_model="numpy")
def ready_block(job: Any, kernel: Any, first: Any, end: Any, scratch: Any) -> ReadyBlock:
    """Make the block of codes from row ``first`` on, up to ``end``, ready for the functions of ``kernel``.

    Args:
        job: a record with the fields ``codes``, ``width``, ``count`` and ``allowed``.
        kernel: a BLOCK_KERNEL.
        first: the first row.
        end: the row behind the last one that the caller looks at.
        scratch: address of :func:`scratch_bytes` bytes, on a cache line.
    """
    size = kernel.block
    in_block = min(size, end - first)
    groups = (in_block + GROUP - 1) // GROUP
    allowed = np.int64(0)
    if job.allowed != 0 or in_block < size:
        allowed = scratch + kernel.slot * size
        source = job.allowed + first if job.allowed != 0 else 0
        if _copy_mask(source, in_block, groups, allowed) == 0:
            return ReadyBlock(np.int64(0), allowed, np.int64(0))
    codes = job.codes + first * job.width
    left = job.count - first
    if not kernel.in_place or in_block < size or left - in_block < GROUP:
        call_kernel(kernel.arrange, codes, left, in_block, scratch)
        codes = scratch
    return ReadyBlock(codes, allowed, groups)


@numba.njit(nogil=True, error_model="numpy")
def near_in_group(kernel: Any, block: ReadyBlock, group: Any, cut: Any, query: Any, measured: Any) -> Any:
    """Write the distances of a group, and return which of its codes may be found and are below ``cut``, a bit each.

    Args:
        kernel: a BLOCK_KERNEL.
        block: the block.
        group: the group's number in the block.
        cut: only codes below it.
        query: address.
        measured: address of 64 uint16; it is written only if a code of the group may be found.
    """
    mask = ~numba.uint64(0) if block.allowed == 0 else bits_true(block.allowed + group * GROUP)
    if mask == 0:
        return mask
    return mask & call_kernel(kernel.near, block.codes + group * GROUP * kernel.code_bytes, cut, query, measured)
