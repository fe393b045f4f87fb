"""The compiled part of exact Hamming search. Imports numba, so it is itself imported on first use.

Codes reach the kernel as an address of contiguous rows: read-only, memory-mapped and unaligned arrays then
share one compiled function (numba would compile each kind again). The caller keeps the arrays alive.

How a scan works. Distances of a block of codes go into a buffer that stays in the first-level cache. The
minimum of the block, then of each group in it, is compared with the running k-th distance ("the cut"); only
groups that beat it are looked at one by one. As rows come in ascending order, a later code at the cut itself
can never enter the answer, so "below the cut" is the exact test and ties need no further care.
"""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic as _numba_intrinsic

BLOCK: Final = 4096  # codes a distance pass: 8 KiB of uint16 distances
GROUP: Final = 256  # distances a minimum

Array = npt.NDArray[Any]

# Typed upstream as the function it decorates, not as what callers see.
intrinsic: Callable[[Callable[..., Any]], Any] = _numba_intrinsic


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile to native code without the GIL, cached on disk wherever numba finds a writable place.

    numba looks at NUMBA_CACHE_DIR, then beside this file, then in the user's cache folder. Where all are
    read-only it raises instead of compiling, so such a machine compiles once a process.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return numba.njit(signature, nogil=True)(function)

    return wrap


@intrinsic
def _popcount(typing: Any, value: Any) -> Any:
    """Return the number of set bits of an unsigned integer, in its own type (vectorises, unlike a table)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return value(value), generate


def _loader(kind: Any) -> Any:
    """Make ``load(address, offset)``: the little-endian ``kind`` that lies ``offset`` bytes from ``address``.

    A pointer plus an offset, rather than array indexing: numba's wrap-around of negative indices would turn
    the vectorised loads into gathers.
    """

    @intrinsic
    def load(typing: Any, address: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
            place = builder.gep(base, [arguments[1]])
            word = ir.IntType(kind.bitwidth)
            loaded = builder.load(builder.bitcast(place, word.as_pointer()))
            loaded.align = 1
            return loaded

        return kind(types.uint64, types.int64), generate

    return load


_load8 = _loader(types.uint8)
_load16 = _loader(types.uint16)
_load32 = _loader(types.uint32)
_load64 = _loader(types.uint64)


@_compiled("void(uint64, int64, int64, int64, uint64, uint16[::1])")
def _distance_pass_any_width(address: int, width: int, start: int, count: int, query: int, out: Array) -> None:
    whole = width // 8 * 8  # bytes in whole words
    tail = width - whole
    if tail == 0:
        for i in range(count):
            base = address + numba.uint64((start + i) * width)
            total = numba.uint64(0)
            for offset in range(0, whole, 8):
                total += _popcount(_load64(base, offset) ^ _load64(query, offset))
            out[i] = total
        return
    # The tail is read as the 8 bytes that end where the code ends, with the bytes before it shifted out. The
    # first codes of the array may have fewer than 8 bytes before their end: those are read byte by byte.
    first = min(count, max(0, (8 + width - 1) // width - 1 - start))
    for i in range(first):
        base = address + numba.uint64((start + i) * width)
        total = numba.uint64(0)
        for offset in range(width):
            total += numba.uint64(_popcount(_load8(base, offset) ^ _load8(query, offset)))
        out[i] = total
    shift = numba.uint64(8 * (8 - tail))
    tail_of_query = _load64(query, whole)
    for i in range(first, count):
        base = address + numba.uint64((start + i) * width)
        total = _popcount((_load64(base, width - 8) >> shift) ^ tail_of_query)
        for offset in range(0, whole, 8):
            total += _popcount(_load64(base, offset) ^ _load64(query, offset))
        out[i] = total


@_compiled("void(uint64, int64, int64, int64, uint64, uint16[::1])")
def distance_pass(address: int, width: int, start: int, count: int, query: int, out: Array) -> None:
    """Write into out[0:count] the distances of codes [start, start + count) to one query.

    Args:
        address: of the codes, rows of ``width`` bytes.
        width: bytes a code.
        start: first row.
        count: number of rows.
        query: address of the query, padded with zero bytes to a multiple of 8.
        out: (at least count,) uint16.
    """
    base = address + numba.uint64(start * width)
    if width == 8:
        q = _load64(query, 0)
        for i in range(count):
            out[i] = _popcount(_load64(base, i * 8) ^ q)
    elif width == 16:
        q0, q1 = _load64(query, 0), _load64(query, 8)
        for i in range(count):
            out[i] = _popcount(_load64(base, i * 16) ^ q0) + _popcount(_load64(base, i * 16 + 8) ^ q1)
    elif width == 32:
        q0, q1, q2, q3 = _load64(query, 0), _load64(query, 8), _load64(query, 16), _load64(query, 24)
        for i in range(count):
            low = _popcount(_load64(base, i * 32) ^ q0) + _popcount(_load64(base, i * 32 + 8) ^ q1)
            high = _popcount(_load64(base, i * 32 + 16) ^ q2) + _popcount(_load64(base, i * 32 + 24) ^ q3)
            out[i] = low + high
    elif width == 4:
        q = _load32(query, 0)
        for i in range(count):
            out[i] = _popcount(_load32(base, i * 4) ^ q)
    elif width == 2:
        q = _load16(query, 0)
        for i in range(count):
            out[i] = _popcount(_load16(base, i * 2) ^ q)
    elif width == 1:
        q = _load8(query, 0)
        for i in range(count):
            out[i] = _popcount(_load8(base, i) ^ q)
    else:
        _distance_pass_any_width(address, width, start, count, query, out)


@_compiled("void(uint64, int64, int64, uint64, int64, int64)")
def distances_only(
    address: int, width: int, code_count: int, queries: int, query_count: int, query_stride: int
) -> None:
    """Compute every distance block by block, as :func:`scan` does, and select nothing: what a benchmark compares."""
    block = np.empty(BLOCK, np.uint16)
    for first in range(0, code_count, BLOCK):
        count = min(BLOCK, code_count - first)
        for q in range(query_count):
            distance_pass(address, width, first, count, queries + numba.uint64(q * query_stride), block)


@_compiled("uint16(uint16[::1])")
def _minimum(values: Array) -> int:
    lowest = np.uint16(65535)
    for i in range(values.shape[0]):
        lowest = min(lowest, values[i])
    return lowest  # type: ignore[return-value]


@_compiled("int64(int32[::1], int64[::1], int64, int64[::1], int64, int64)")
def _compact(distances: Array, rows: Array, used: int, histogram: Array, cut: int, k: int) -> int:
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


@_compiled("void(int32[::1], int64[::1], int64, int64[::1], int32[::1], int64[::1])")
def counting_sort(
    distances: Array, rows: Array, used: int, place: Array, out_distances: Array, out_rows: Array
) -> None:
    """Write the first len(out) of ``used`` candidates, stably sorted by distance; the rest of out is untouched.

    Args:
        distances: (at least used,) int32.
        rows: (at least used,) int64, ascending within equal distances.
        used: number of candidates.
        place: (largest distance + 1,) int64 scratch.
        out_distances: (k,) int32.
        out_rows: (k,) int64.
    """
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


@_compiled("void(uint64, int64, int64, int64, uint64, int64, int32[:,::1], int64[:,::1])")
def scan(
    address: int,
    width: int,
    start: int,
    stop: int,
    queries: int,
    query_stride: int,
    out_distances: Array,
    out_rows: Array,
) -> None:
    """Search codes [start, stop) for every query; each block of codes is used for all queries while it is hot.

    Args:
        address: of the codes, rows of ``width`` bytes.
        width: bytes a code.
        start: first row.
        stop: one past the last row.
        queries: address of the queries, each padded with zero bytes to ``query_stride`` bytes.
        query_stride: a multiple of 8.
        out_distances: (Q, k) int32, filled with the padding; its first places receive the answer.
        out_rows: (Q, k) int64, likewise.
    """
    query_count, k = out_rows.shape
    levels = 8 * width + 1
    capacity = 2 * k + GROUP
    distances = np.empty((query_count, capacity), np.int32)
    rows = np.empty((query_count, capacity), np.int64)
    histogram = np.zeros((query_count, levels), np.int64)  # candidates at each distance
    used = np.zeros(query_count, np.int64)
    cut = np.full(query_count, levels, np.int64)  # the running k-th distance
    below = np.zeros(query_count, np.int64)  # candidates below the cut, always fewer than k
    block = np.empty(BLOCK, np.uint16)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        for q in range(query_count):
            distance_pass(address, width, first, count, queries + numba.uint64(q * query_stride), block)
            if _minimum(block[:count]) >= cut[q]:
                continue
            for low in range(0, count, GROUP):
                high = min(count, low + GROUP)
                if _minimum(block[low:high]) >= cut[q]:
                    continue
                if used[q] + GROUP > capacity:
                    used[q] = _compact(distances[q], rows[q], used[q], histogram[q], cut[q], k)
                filled, limit, count_below = used[q], cut[q], below[q]
                for i in range(low, high):
                    distance = np.int64(block[i])
                    if distance < limit:
                        distances[q, filled] = distance
                        rows[q, filled] = first + i
                        filled += 1
                        histogram[q, distance] += 1
                        count_below += 1
                        while count_below >= k:
                            limit -= 1
                            count_below -= histogram[q, limit]
                used[q], cut[q], below[q] = filled, limit, count_below
    for q in range(query_count):
        counting_sort(distances[q], rows[q], used[q], histogram[q], out_distances[q], out_rows[q])
