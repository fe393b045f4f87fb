"""Whether a gallery is better searched code by code or clustered: measured on the codes themselves."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming_inputs import Codes

MAX_PLACES: Final = 2**31 - 1  # the clustered layout numbers its codes, and where they fit their ids, in 4 bytes
SAMPLE_QUERIES: Final = 64
SAMPLE_K: Final = 100
MIN_CODES: Final = 20_000  # below, a plain scan takes a few microseconds anyway
WORTH: Final = 0.5  # clustered must look at no more than this share of what a plain scan compares
# In codes compared by a plain scan: the bound of a bucket, and a visit, which is a call and a look at 64 distances.
_BOUND_COSTS: Final = 3
_VISIT_COSTS: Final = 200


@dataclass(frozen=True)
class LayoutChoice:
    """Which layout a gallery gets, and the measurement that says so.

    Attributes:
        layout: "plain" (every code in row order) or "clustered" (:class:`clustered_codes.ClusteredCodes`).
        reason: one line for people.
        distinct: number of different codes.
        work: what sample searches cost clustered, as a share of a plain scan; None where none was made.
    """

    layout: Literal["plain", "clustered"]
    reason: str
    distinct: int
    work: float | None


def choose_layout(codes: Codes) -> LayoutChoice:
    """Return the layout that codes (N, B) uint8 should have; the answers of both are equal.

    The choice is made from counts, not from clocks: equal codes get the same one on every machine.
    """
    from dmsh_serving.clustered_codes import ClusteredCodes

    count = len(codes)
    order, starts = grouped(codes)
    distinct = len(starts) - 1
    if count < MIN_CODES:
        return LayoutChoice("plain", f"plain: {count:,} codes are few enough to compare them all", distinct, None)
    if count > MAX_PLACES:
        return LayoutChoice("plain", f"plain: {count:,} codes are too many to be numbered in 4 bytes", distinct, None)
    trial = ClusteredCodes(np.ascontiguousarray(codes[order[starts[:-1]]]), starts.astype(np.int32), order)
    queries = codes[np.random.default_rng(0).integers(0, count, SAMPLE_QUERIES)]
    _, _, done = trial.measured_search(queries, SAMPLE_K, threads=1)
    visited = done.visited / SAMPLE_QUERIES
    work = (_BOUND_COSTS * done.buckets + _VISIT_COSTS * visited) / count
    what = (
        f"{distinct:,} of {count:,} codes are different, and a search for {SAMPLE_K} measures "
        f"{min(1.0, 64 * visited / distinct):.1%} of those: {work:.3f} of the work of comparing all"
    )
    if work <= WORTH:
        return LayoutChoice("clustered", f"clustered: {what}", distinct, work)
    return LayoutChoice("plain", f"plain: {what}, not worth it above {WORTH}", distinct, work)


def grouped(codes: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the order (N,) int64 that sorts codes (N, B) uint8, stably, and where each different one starts, and N."""
    keys = sort_keys(codes)
    order = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])
    first = np.ones(len(codes), np.bool_)
    first[1:] = False
    for key in keys:
        ordered = key[order]
        first[1:] |= ordered[1:] != ordered[:-1]
    return order.astype(np.int64, copy=False), np.append(np.flatnonzero(first), len(codes)).astype(np.int64)


def sort_keys(codes: Codes) -> list[npt.NDArray[np.uint64]]:
    """Return the words of codes (N, B) uint8 that sort as their bytes do, the first word first."""
    words = -(-codes.shape[1] // 8)
    if codes.shape[1] % 8 or not codes.flags.c_contiguous:
        padded = np.zeros((len(codes), 8 * words), np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    big_endian = codes.view(">u8")
    return [big_endian[:, word].astype(np.uint64) for word in range(words)]
