"""Exact Hamming search over packed codes: ordered by (distance, row), always, for any thread count.

The compiled part is :mod:`dmsh_serving.hamming.kernels`; :mod:`dmsh_serving.hamming.oracle` is its slow, obvious twin.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming.inputs import (
    Mask,
    check_codes_and_queries,
    checked_mask,
)
from dmsh_serving.hamming.thread_pool import Helpers
from dmsh_serving.hamming.threads import checked_threads, worthwhile_threads

if TYPE_CHECKING:
    from dmsh_serving.hamming.kernels.vectors import Kernel

__all__ = ["search"]

Distances = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]

_QUERIES_PER_SCAN = 128  # they use a block of codes while it is in the first-level cache
_CANDIDATE_BYTES = 64 << 20  # the most memory of a scan: a large k or many threads mean fewer queries per scan
_BLOCKS_PER_CHUNK = 4  # for a lone query: some microseconds of work


def search(
    queries: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    k: int,
    *,
    threads: int | None = None,
    allowed: Mask | None = None,
) -> tuple[Distances, Rows]:
    """Return the k nearest codes of every query.

    Args:
        queries: (Q, B) uint8, packed; Q may be 0.
        codes: (N, B) uint8, packed, 1 <= B <= 128; N may be 0. Read-only and memory-mapped arrays are searched
            in place; an array that is not contiguous is copied first.
        k: results per query, 1 to ``contract.MAX_K``.
        threads: the most threads to use; None for all CPUs that this process may use. It does not change the answer.
        allowed: (N,) bool, whether each row may be found; None if all may.

    Returns:
        distances (Q, k) int32 and rows (Q, k) int64, ordered by (distance, row) ascending. If fewer than k rows may be
        found, the rest is distance ``contract.PAD_DISTANCE`` and row ``contract.PAD_ID``.

    Raises:
        InputError: a dtype, shape, k or thread count other than the above.
    """
    check_codes_and_queries(queries, codes)
    k = checked_k(k)
    threads = checked_threads(threads)
    allowed = checked_mask(allowed, len(codes))
    if len(codes) == 0 or len(queries) == 0:
        return np.full((len(queries), k), PAD_DISTANCE, np.int32), np.full((len(queries), k), PAD_ID, np.int64)
    queries, codes = np.ascontiguousarray(queries), np.ascontiguousarray(codes)
    distances, rows = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    participants = worthwhile_threads(threads, len(queries) * codes.size)
    batch = max(1, min(_QUERIES_PER_SCAN, len(queries), _CANDIDATE_BYTES // (24 * k * participants)))
    blocks = max(1, _BLOCKS_PER_CHUNK // len(queries))
    mask = 0 if allowed is None else allowed.ctypes.data
    compiled = _compiled()
    job = compiled.kernel_for(codes.shape[1]).record_for(batch)
    with Helpers(participants - 1) as mailboxes:
        compiled.search_batches(
            job, compiled.scan, compiled.share, mailboxes, codes, mask, queries, batch, blocks, distances, rows
        )
    return distances, rows


@dataclass(frozen=True)
class _Compiled:
    """The compiled functions that a search needs. They are fetched once: imports would slow a small search down."""

    search_batches: Callable[..., None]
    kernel_for: "Callable[[int], Kernel]"
    scan: int
    share: int


@functools.cache
def _compiled() -> _Compiled:
    from dmsh_serving.hamming.kernels.batches import search_batches
    from dmsh_serving.hamming.kernels.helpers import share
    from dmsh_serving.hamming.kernels.scan import scan
    from dmsh_serving.hamming.kernels.vectors import kernel_for

    return _Compiled(search_batches, kernel_for, scan.address, share.address)
