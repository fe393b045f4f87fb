"""What every metric is computed from: histograms of distances, and sums of precision@rank, streamed in blocks.

Two passes over the database. The first counts images at each distance; that fixes at which rank each distance
begins. The second meets the images in the order of their rows and so knows the rank of each in the order (distance,
row) without sorting. Of queries x database only one block is ever in memory; codes and labels may be mapped files.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labels import Labels, labels_problem, relevance
from dmsh_serving.codes import Codes
from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import InputError

__all__ = ["Counts", "RankedRelevance", "Sums", "rank_relevance"]

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

_QUERIES_AT_ONCE = 128
_ROWS_AT_ONCE = 1 << 14  # with the queries above: 2 MiB of relevance, which stays in a second-level cache


@dataclass(frozen=True)
class RankedRelevance:
    """How relevant images lie in the ranked answers of Q queries.

    Attributes:
        totals: (Q, D) int64, database images at each Hamming distance 0 to D - 1.
        hits: (Q, D) int64, relevant ones among them.
        cutoffs: (C,) int64, numbers of ranks, at most the size of the database.
        found: (Q, C) int64, relevant images within each cutoff.
        sums: (Q, C) float64, precision@rank summed over these, added up in the order of their rows.
        lowest: (Q, C) float64, that sum if, at equal distance, relevant images come last.
        highest: (Q, C) float64, that sum if they come first.
    """

    totals: Counts
    hits: Counts
    cutoffs: Counts
    found: Counts
    sums: Sums
    lowest: Sums
    highest: Sums

    @property
    def relevant(self) -> Counts:
        """(Q,) int64, relevant images of the whole database."""
        return np.asarray(self.hits.sum(axis=1))


def rank_relevance(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    cutoffs: Sequence[int | None],
) -> RankedRelevance:
    """Rank the database for every query by (distance, row) and count.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed; row order breaks ties. A mapped file is read twice, in order.
        query_labels: (Q,) int64, or (Q, C) uint8 multi-hot.
        database_labels: (N,) int64, or (N, C) uint8 multi-hot.
        cutoffs: ranks that count, each at least 1; None, or more than N, is N.

    Raises:
        InputError: nothing to rank, arrays that do not fit each other, or a cutoff below 1.
    """
    _check(query_codes, database_codes, query_labels, database_labels, cutoffs)
    count = len(database_codes)
    ends = np.array([count if k is None else min(k, count) for k in cutoffs], np.int64)
    parts = [slice(start, start + _QUERIES_AT_ONCE) for start in range(0, len(query_codes), _QUERIES_AT_ONCE)]

    def ranked(part: slice) -> RankedRelevance:
        return _rank_some(query_codes[part], database_codes, query_labels[part], database_labels, ends)

    with ThreadPoolExecutor(min(available_cpus(), len(parts))) as pool:
        done = list(pool.map(ranked, parts))
    return RankedRelevance(
        cutoffs=ends,
        **{
            name: np.concatenate([getattr(part, name) for part in done])
            for name in ("totals", "hits", "found", "sums", "lowest", "highest")
        },
    )


def _rank_some(
    query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels, ends: Counts
) -> RankedRelevance:
    from dmsh_model.evaluation import kernel

    queries = _words(query_codes)

    def blocks() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]]:
        for start in range(0, len(database_codes), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            yield _words(database_codes[rows]), relevance(query_labels, database_labels[rows])

    totals, hits = np.zeros((2, len(queries), 8 * query_codes.shape[1] + 1), np.int64)
    for block, relevant in blocks():
        kernel.count_distances(queries, block, relevant, totals, hits)
    # Where each distance begins: all that is nearer comes before.
    ranks, hits_before = (np.cumsum(counts, axis=1) - counts for counts in (totals, hits))
    sums, lowest, highest = np.zeros((3, len(queries), len(ends)))
    found = np.zeros((len(queries), len(ends)), np.int64)
    for block, relevant in blocks():
        kernel.add_precisions(queries, block, relevant, ranks, hits_before, ends, sums, found)
    kernel.bound_precisions(totals, hits, ends, lowest, highest)
    return RankedRelevance(totals, hits, ends, found, sums, lowest, highest)


def _words(codes: Codes) -> npt.NDArray[np.uint64]:
    """(N, B) uint8 -> (N, ceil(B/8)) uint64, filled up with zeros: the order of its bytes changes no distance."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(np.uint64)


def _check(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    cutoffs: Sequence[int | None],
) -> None:
    problems = []
    for name, codes, labels in (
        ("query", query_codes, query_labels),
        ("database", database_codes, database_labels),
    ):
        if codes.ndim != 2 or codes.dtype != np.uint8 or codes.size == 0 or len(labels) != len(codes):
            problems.append(
                f"{name} codes {codes.dtype} {list(codes.shape)} and labels {list(labels.shape)} "
                "must be uint8 [N, B] and one label, or row of labels, a code, N at least 1"
            )
    if not problems and query_codes.shape[1] != database_codes.shape[1]:
        problems.append(f"query codes have {query_codes.shape[1]} bytes, database codes {database_codes.shape[1]}")
    if problem := labels_problem(query_labels, database_labels):
        problems.append(problem)
    problems += [f"topk = {k} must be at least 1" for k in cutoffs if k is not None and k < 1]
    if problems:
        raise InputError("; ".join(problems))
