"""The compiled part of the evaluation. Imports numba, so it is itself imported on first use.

Each function sees some queries and one block of the database at a time, and keeps a few counters per query and
distance: memory depends neither on the size of the database nor on the number of queries.
"""

import numba
import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.kernels.compile import compiled

__all__ = ["Counts", "Relevance", "Sums", "Words", "add_precisions", "bound_precisions", "count_distances"]

Words = npt.NDArray[np.uint64]
Relevance = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


_compiled = compiled(None)  # for the types of the first call


@numba.njit(nogil=True, inline="always")
def _distance(left: Words, right: Words) -> np.int64:
    distance = np.uint64(0)
    for word in range(left.size):
        # The textbook count of set bits, which LLVM turns into the processor's own instruction.
        bits = left[word] ^ right[word]
        bits -= (bits >> np.uint64(1)) & np.uint64(0x5555555555555555)
        bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
        bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        distance += (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return np.int64(distance)


@_compiled
def count_distances(queries: Words, block: Words, relevant: Relevance, totals: Counts, hits: Counts) -> None:
    """Add one block to the histograms of distances.

    Args:
        queries: (Q, W) uint64.
        block: (N, W) uint64.
        relevant: (Q, N) bool.
        totals: (Q, D) int64, images at each distance; added to.
        hits: (Q, D) int64, relevant ones among them; added to.
    """
    for query in range(queries.shape[0]):
        for row in range(block.shape[0]):
            distance = _distance(queries[query], block[row])
            totals[query, distance] += 1
            hits[query, distance] += relevant[query, row]


@_compiled
def add_precisions(
    queries: Words,
    block: Words,
    relevant: Relevance,
    ranks: Counts,
    hits: Counts,
    cutoffs: Counts,
    sums: Sums,
    found: Counts,
) -> None:
    """Add precision@rank of one block's relevant images, in the order of their rows.

    Args:
        queries: (Q, W) uint64.
        block: (N, W) uint64; blocks come in the order of the database.
        relevant: (Q, N) bool.
        ranks: (Q, D) int64, images ranked before the next one at each distance; moved on.
        hits: (Q, D) int64, relevant ones among them; moved on.
        cutoffs: (C,) int64, the ranks that count.
        sums: (Q, C) float64, precision@rank summed over relevant images within each cutoff; added to.
        found: (Q, C) int64, relevant images within each cutoff; added to.
    """
    for query in range(queries.shape[0]):
        for row in range(block.shape[0]):
            distance = _distance(queries[query], block[row])
            ranks[query, distance] += 1
            if relevant[query, row]:
                hits[query, distance] += 1
                rank = ranks[query, distance]
                precision = hits[query, distance] / rank
                for cutoff in range(cutoffs.size):
                    if rank <= cutoffs[cutoff]:
                        sums[query, cutoff] += precision
                        found[query, cutoff] += 1


@_compiled
def bound_precisions(totals: Counts, hits: Counts, cutoffs: Counts, lowest: Sums, highest: Sums) -> None:
    """Sum precision@rank as if, within every distance, relevant images came last, and as if they came first.

    Args:
        totals: (Q, D) int64, images at each distance.
        hits: (Q, D) int64, relevant ones among them.
        cutoffs: (C,) int64, the ranks that count.
        lowest: (Q, C) float64, written.
        highest: (Q, C) float64, written.
    """
    for query in range(totals.shape[0]):
        before, hits_before = 0, 0
        for distance in range(totals.shape[1]):
            total, relevant = totals[query, distance], hits[query, distance]
            for hit in range(1, relevant + 1):
                first = before + hit
                last = before + total - relevant + hit
                for cutoff in range(cutoffs.size):
                    if first <= cutoffs[cutoff]:
                        highest[query, cutoff] += (hits_before + hit) / first
                    if last <= cutoffs[cutoff]:
                        lowest[query, cutoff] += (hits_before + hit) / last
            before += total
            hits_before += relevant
