"""What compiled search shares of its memory: the words of a job, and where each participant's memory is.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numba

from dmsh_serving.hamming.kernels.cache_lines import LINE
from dmsh_serving.hamming.kernels.intrinsics import carray, pointer_i32, pointer_i64

GROUP: Final = 64  # codes a look at the cut

# Words of a job. The counter has a cache line of its own: every thread writes to it, and reads the others all the time.
NEXT: Final = 0
(
    HIT_GROUPS, NEAR, ARRANGE, IN_PLACE, CODE_BYTES, MASK_BLOCK, ROW_NEAR, SLOT, BLOCK, CHUNK, CODES, WIDTH, COUNT,
    ALLOWED, QUERIES, QUERY_COUNT, K, LEVELS, BATCH, CAPACITY, MEMORY, MEMORY_STRIDE, FIRST_CUTS,
) = range(LINE, LINE + 23)  # fmt: skip
WORDS: Final = LINE + 23
USED, CUT, BELOW, STATE = range(4)  # a state: candidates, the running k-th distance, candidates below it; its size


@numba.njit(nogil=True, error_model="numpy")
def block_bytes(slot: int, block: int) -> Any:
    """Return the bytes of an arranged block, the distances of a group and a block's part of the mask, in this order."""
    return slot * block + 2 * GROUP + block


@numba.njit(nogil=True, error_model="numpy")
def memory_words(slot: int, block: int, batch: int, capacity: int, levels: int) -> Any:
    """Return the 8-byte words of memory a participant needs: states, candidates, their histograms and a block.

    An arranged block comes first, on a cache line; then the states, which are to be zeros when the participant begins.
    """
    candidates = batch * (STATE + capacity + capacity // 2 + levels)
    return (candidates + block_bytes(slot, block) // 8 + LINE - 1) // LINE * LINE


@numba.njit(nogil=True, error_model="numpy")
def memory_of(job: Any, participant: int) -> Any:
    """Return a participant's states, candidate rows and distances, histograms, and the address of its scratch."""
    batch, capacity, levels = job[BATCH], job[CAPACITY], job[LEVELS]
    arranged = job[MEMORY] + 8 * participant * job[MEMORY_STRIDE]
    at = arranged + block_bytes(job[SLOT], job[BLOCK])
    states = carray(pointer_i64(at), (batch, STATE))
    at += 8 * batch * STATE
    rows = carray(pointer_i64(at), (batch, capacity))
    at += 8 * batch * capacity
    histograms = carray(pointer_i64(at), (batch, levels))
    at += 8 * batch * levels
    return states, rows, carray(pointer_i32(at), (batch, capacity)), histograms, arranged
