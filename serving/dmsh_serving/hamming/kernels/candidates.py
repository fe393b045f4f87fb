"""The candidates of a clustered search, and heaps of them. Imports numba, so it is itself imported on first use."""

from typing import Any, Final

import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import record_type, types

__all__ = ["CANDIDATE", "copy", "gather", "sift_down", "swap"]

CANDIDATE: Final = np.dtype(
    [
        ("first_id", np.int64),  # the id at ``place``
        ("place", np.int64),  # the first place of the code that may be found
        ("end", np.int64),  # the place behind the last of the code
        ("distance", np.int64),
    ],
    align=True,
)

_candidate = record_type(CANDIDATE)


@compiled(types.void(_candidate[::1], types.int64, types.int64))
def copy(candidates: Any, source: int, target: int) -> None:
    """Copy candidate ``source`` over candidate ``target``."""
    candidates[target].first_id = candidates[source].first_id
    candidates[target].place = candidates[source].place
    candidates[target].end = candidates[source].end
    candidates[target].distance = candidates[source].distance


@compiled(types.void(_candidate[::1], types.int64, types.int64))
def swap(candidates: Any, a: int, b: int) -> None:
    """Let two candidates change places."""
    one, other = candidates[a], candidates[b]
    one.first_id, other.first_id = other.first_id, one.first_id
    one.place, other.place = other.place, one.place
    one.end, other.end = other.end, one.end
    one.distance, other.distance = other.distance, one.distance


@compiled(types.void(_candidate[::1], types.int64, types.int64))
def sift_down(heap: Any, size: int, at: int) -> None:
    """Let entry ``at`` sink to its place in a heap of candidates at one distance, the smallest id first."""
    first_id, place, end = heap[at].first_id, heap[at].place, heap[at].end
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1].first_id < heap[child].first_id:
            child += 1
        if first_id <= heap[child].first_id:
            break
        copy(heap, child, at)
        at = child
    heap[at].first_id, heap[at].place, heap[at].end = first_id, place, end


@compiled(types.int64(_candidate[::1], types.int64, types.int64, types.int64))
def gather(candidates: Any, start: int, used: int, distance: int) -> int:
    """Move the candidates at ``distance`` to ``start``, as a heap; return their number."""
    size = 0
    for i in range(start, used):
        if candidates[i].distance == distance:
            swap(candidates, i, start + size)
            size += 1
    for i in range(size // 2 - 1, -1, -1):
        sift_down(candidates[start:], size, i)
    return size
