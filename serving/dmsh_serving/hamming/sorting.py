"""The order of codes: the words they sort by, groups of equal ones, and whether arrays ascend.

A gallery of ten million codes is checked whole when it is opened. To compare whole arrays at once would write long
intermediate arrays. So arrays are checked block by block, in the cache, on every CPU.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.cpu import available_cpus

__all__ = ["ascends", "ascends_within", "codes_ascend", "grouped"]

_BLOCK: Final = 1 << 15  # entries
_WORTH_THREADS: Final = 1 << 18  # entries; to check fewer takes no longer than to start a thread

Numbers = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def ascends(values: Numbers) -> bool:
    """Say whether ``values`` (N,) ascend strictly."""
    return _everywhere(lambda start, stop: _ascends(values[start:stop]), len(values))


def codes_ascend(codes: Codes) -> bool:
    """Say whether codes (N, B) uint8 ascend strictly, in byte order."""
    return _everywhere(lambda start, stop: _codes_ascend(codes[start:stop]), len(codes))


def ascends_within(starts: Numbers, values: Numbers) -> bool:
    """Say whether ``values`` (N,) ascend strictly within each group; a group may begin below the end of the last one.

    Args:
        starts: (U + 1,), ascending strictly from 0 to N: the position of each group's first value, then N.
        values: (N,).
    """

    def check(start: int, stop: int) -> bool:
        edges = starts[start:stop]
        first, end = int(edges[0]), int(edges[-1])
        own = values[first:end]
        falls = own[1:] <= own[:-1]
        falls[edges[1:-1] - first - 1] = False
        return not falls.any()

    return _everywhere(check, len(starts))


def grouped(codes: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sort codes (N, B) uint8 stably, and group equal ones.

    Returns:
        order (N,) int64, the rows in ascending order of their codes; and starts (U + 1,) int64, the position in
        ``order`` of the first of each of U different codes, then N.
    """
    keys = sort_keys(codes)
    order = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])
    first = np.ones(len(codes), np.bool_)
    first[1:] = False
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return order.astype(np.int64, copy=False), np.append(np.flatnonzero(first), len(codes)).astype(np.int64)


def sort_keys(codes: Codes) -> list[npt.NDArray[np.uint64]]:
    """Return codes (N, B) uint8 as arrays (N,) of their first, second, ... words, which sort as the bytes do."""
    words = -(-codes.shape[1] // 8)
    if codes.shape[1] % 8 or not codes.flags.c_contiguous:
        padded = np.zeros((len(codes), 8 * words), np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    big_endian = codes.view(">u8")
    return [big_endian[:, word].astype(np.uint64) for word in range(words)]


def _ascends(values: Numbers) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _codes_ascend(codes: Codes) -> bool:
    undecided = np.ones(len(codes) - 1, np.bool_)
    for words in sort_keys(codes):
        if (undecided & (words[1:] < words[:-1])).any():
            return False
        undecided &= words[1:] == words[:-1]
    return not undecided.any()


def _everywhere(check: Callable[[int, int], bool], count: int) -> bool:
    """Say whether ``check(start, stop)`` is true for all blocks; neighbouring blocks share one entry."""
    spans = [(start, min(start + _BLOCK, count - 1) + 1) for start in range(0, count - 1, _BLOCK)]
    if count < _WORTH_THREADS:
        return all(check(*span) for span in spans)
    with ThreadPoolExecutor(available_cpus()) as pool:  # NumPy compares without the GIL
        return all(pool.map(check, *zip(*spans, strict=True)))
