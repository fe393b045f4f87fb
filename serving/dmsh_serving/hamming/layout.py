"""Whether a gallery is better searched code by code or clustered: measured on the codes themselves."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from dmsh_serving.codes import Codes
from dmsh_serving.hamming.clustered import MAX_PLACES, ClusteredCodes
from dmsh_serving.hamming.sorting import grouped

__all__ = ["LayoutChoice", "choose_layout"]

SAMPLE_QUERIES: Final = 64
SAMPLE_K: Final = 100
MIN_CODES: Final = 20_000  # a plain scan of fewer takes a few microseconds anyway
MAX_COUNTED: Final = 1 << 28  # to sort codes takes 3 times their bytes, and 8 per code
WORTH: Final = 0.5  # the clustered layout is chosen if its work is at most this share of a plain scan's
# The unit of these costs is to compare one code in a plain scan.
_BOUND_COSTS: Final = 3  # to compute the bound of a bucket
_VISIT_COSTS: Final = 200  # to measure the 64 codes of a bucket


@dataclass(frozen=True)
class LayoutChoice:
    """Which layout a gallery gets, and the measurement that says so.

    Attributes:
        layout: "plain" (every code in row order) or "clustered" (``clustered.ClusteredCodes``).
        reason: one line for people.
        distinct: number of different codes; None if there are too many to count them.
        work: the work of sample searches in the clustered layout, as a share of a plain scan's; None if not tried.
    """

    layout: Literal["plain", "clustered"]
    reason: str
    distinct: int | None
    work: float | None


def choose_layout(codes: Codes) -> LayoutChoice:
    """Return the layout that codes (N, B) uint8 should have. Both layouts give equal answers.

    The choice is made by counting work, not by a clock: equal codes get the same layout on every machine.
    """
    count = len(codes)
    if count > MAX_COUNTED:
        return LayoutChoice("plain", f"plain: {count:,} codes are too many to sort them in memory", None, None)
    order, starts = grouped(codes)
    distinct = len(starts) - 1
    if count < MIN_CODES:
        return LayoutChoice("plain", f"plain: {count:,} codes are few enough to compare them all", distinct, None)
    if count > MAX_PLACES:
        return LayoutChoice("plain", f"plain: {count:,} codes are too many for places of 4 bytes", distinct, None)
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
