"""Compute every Hamming distance and select none: ``dmsh-serve bench`` and benchmarks compare a search with it.

Imports numba, so it is itself imported on first use.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.kernels.blocks import GROUP
from dmsh_serving.hamming.kernels.compile import entry
from dmsh_serving.hamming.kernels.intrinsics import atomic_add, call_kernel, record_at
from dmsh_serving.hamming.kernels.memory import COUNTER, new_record

__all__ = ["JOB", "BarePass"]

JOB: Final = np.dtype(
    [
        ("next_chunk", COUNTER),  # the first chunk that no participant has taken
        ("distances", np.int64),  # address of ``Kernel.distances``
        ("codes", np.int64),  # address, (count, slot) uint8
        ("slot", np.int64),
        ("block", np.int64),  # codes per block
        ("chunk", np.int64),  # codes per chunk
        ("count", np.int64),
        ("queries", np.int64),  # address, (query_count, slot) uint8
        ("query_count", np.int64),
        ("out", np.int64),  # address, (participants, block) uint16
    ],
    align=True,
)
_job_at = record_at(JOB)

_BLOCKS_PER_CHUNK: Final = 4


class BarePass:
    """A call that computes every distance. It shares the codes out to threads as a search does.

    Each thread writes the distances of one block after the other to the same buffer. Codes are read where they lie.

    Args:
        queries: (Q, B) uint8, Q at least 1.
        codes: (N, B) uint8, B a power of two; the codes beyond the last whole group of 64 are left out.
        threads: the most threads to use.

    Attributes:
        distances: (threads, block) uint16, for each thread the distances of the last query to the last block that the
            thread took; zeros if it took none.
    """

    def __init__(self, queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], *, threads: int = 1) -> None:
        from dmsh_serving.hamming.inputs import padded_queries
        from dmsh_serving.hamming.kernels.vectors import kernel_for
        from dmsh_serving.hamming.threads import worthwhile_threads

        kernel = kernel_for(codes.shape[1])
        padded = padded_queries(queries, kernel.slot)
        self._threads = worthwhile_threads(threads, len(queries) * codes.size)
        self.distances = np.zeros((self._threads, kernel.block), np.uint16)
        chunk = max(1, _BLOCKS_PER_CHUNK // len(queries)) * kernel.block
        self._job = new_record(
            JOB,
            distances=kernel.distances,
            codes=codes.ctypes.data,
            slot=kernel.slot,
            block=kernel.block,
            chunk=chunk,
            count=len(codes),
            queries=padded.ctypes.data,
            query_count=len(padded),
            out=self.distances.ctypes.data,
        )
        self._kept = codes, padded  # their addresses are in the job

    def __call__(self) -> None:
        """Compute all distances once."""
        from dmsh_serving.hamming.thread_pool import run

        self._job["next_chunk"]["value"] = 0
        run(_distances.address, self._job, self._threads)


@entry("void(int64, int64)")
def _distances(job_address: int, participant: int) -> Any:
    job = _job_at(job_address)
    out = job.out + 2 * participant * job.block
    while True:
        chunk = atomic_add(job.next_chunk, 1) * job.chunk
        if chunk >= job.count:
            return
        for first in range(chunk, min(job.count, chunk + job.chunk), job.block):
            groups = min(job.block, job.count - first) // GROUP
            codes = job.codes + first * job.slot
            for q in range(job.query_count):
                call_kernel(job.distances, codes, groups, job.queries + q * job.slot, out)
