"""Every Hamming distance computed and none selected: what benchmarks compare a search with.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.kernels.cache_lines import LINE, aligned_words
from dmsh_serving.hamming.kernels.compile import entry
from dmsh_serving.hamming.kernels.intrinsics import atomic_add, call_kernel, carray, pointer_i64
from dmsh_serving.hamming.kernels.job import GROUP

# Words of a job. The counter has a cache line of its own, as a search's.
NEXT: Final = 0
KERNEL, CODES, SLOT, BLOCK, CHUNK, COUNT, QUERIES, QUERY_COUNT, OUT = range(LINE, LINE + 9)
WORDS: Final = LINE + 9

_BLOCKS_A_CHUNK: Final = 4


class BarePass:
    """A call that computes every distance, shared out to threads as a search shares codes out.

    It goes block by block over one buffer a thread. Codes are read where they lie, as few queries read them.

    Args:
        queries: (Q, B) uint8, Q at least 1.
        codes: (N, B) uint8, B a power of two; those beyond the last whole group of 64 are left out.
        threads: at most so many.

    Attributes:
        distances: (threads, block) uint16, of the last block that each thread took those of the last query; zeros of
            a thread that took none.
    """

    def __init__(self, queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], *, threads: int = 1) -> None:
        from dmsh_serving.hamming.inputs import padded_queries, worthwhile_threads
        from dmsh_serving.hamming.kernels.vectors import kernel_for

        kernel = kernel_for(codes.shape[1])
        padded = padded_queries(queries, kernel.slot)
        self._threads = worthwhile_threads(threads, len(queries) * codes.size)
        self.distances = np.zeros((self._threads, kernel.block), np.uint16)
        chunk = max(1, _BLOCKS_A_CHUNK // len(queries)) * kernel.block
        self._job = aligned_words(WORDS)
        self._job[KERNEL:] = (
            *(kernel.distances, codes.ctypes.data, kernel.slot, kernel.block, chunk, len(codes)),
            *(padded.ctypes.data, len(padded), self.distances.ctypes.data),
        )
        self._kept = codes, padded  # their addresses are in the job

    def __call__(self) -> None:
        """Compute them all, once."""
        from dmsh_serving.hamming.helper_threads import run

        self._job[NEXT] = 0
        run(_distances.address, self._job, self._threads)


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
