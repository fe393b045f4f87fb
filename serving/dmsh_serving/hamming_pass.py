"""Every Hamming distance computed and none selected: what benchmarks compare a search with.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.cache_lines import LINE, aligned_words
from dmsh_serving.native import atomic_add, call_kernel, carray, entry, pointer_i64

GROUP: Final = 64

# Words of a job. The counter has a cache line of its own, as a search's.
NEXT: Final = 0
KERNEL, CODES, SLOT, BLOCK, CHUNK, COUNT, QUERIES, QUERY_COUNT, OUT = range(LINE, LINE + 9)
WORDS: Final = LINE + 9

_BLOCKS_A_CHUNK: Final = 4


def bare_pass(
    queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], *, threads: int = 1
) -> npt.NDArray[np.uint16]:
    """Compute every distance block by block over one buffer a thread, shared out as a search shares codes out.

    Args:
        queries: (Q, B) uint8.
        codes: (N, B) uint8, B a power of two; those beyond the last whole group of 64 are left out.
        threads: at least 1; all are used, however few the codes.

    Returns:
        (threads, block) uint16, the buffers: of the last block that each thread took, the last query's distances.
    """
    from dmsh_serving import workers
    from dmsh_serving.hamming_inputs import padded_queries
    from dmsh_serving.hamming_kernel import kernel_for

    kernel = kernel_for(codes.shape[1])
    padded = padded_queries(queries, kernel.slot)
    out = np.empty((threads, kernel.block), np.uint16)
    job = aligned_words(WORDS)
    job[NEXT] = 0
    job[KERNEL:] = (
        *(kernel.distances, codes.ctypes.data, kernel.slot, kernel.block, _BLOCKS_A_CHUNK * kernel.block, len(codes)),
        *(padded.ctypes.data, len(padded), out.ctypes.data),
    )
    workers.run(_distances.address, job, threads)
    return out


@entry("void(int64, int64)")
def _distances(job_address: int, participant: int) -> Any:
    job = carray(pointer_i64(job_address), WORDS)
    out = job[OUT] + 2 * participant * job[BLOCK]
    while True:
        chunk = atomic_add(job_address + 8 * NEXT, 1) * job[CHUNK]
        if chunk >= job[COUNT]:
            return
        for first in range(chunk, min(job[COUNT], chunk + job[CHUNK]), job[BLOCK]):
            groups = min(job[BLOCK], job[COUNT] - first) // GROUP
            codes = job[CODES] + first * job[SLOT]
            for q in range(job[QUERY_COUNT]):
                call_kernel(job[KERNEL], codes, groups, job[QUERIES] + q * job[SLOT], out)
