"""Retrieval quality: mean average precision and precision@k, in the one defined order of a search.

A query's answer is the whole database, or its first k, ordered by (Hamming distance, row) ascending. mAP is
ambiguous under ties of the distance; this order makes it one number, and it is the order the server answers in.

Average precision of an answer: the mean of precision@i over the ranks i that hold a relevant image. It is divided by
the number of relevant images *among the first k* (all of them for mAP@all); a query with none counts as 0. This is
the normalisation of the hashing literature's mAP@k; dividing by min(k, all relevant) gives lower numbers.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.errors import InputError

Labels = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int64]
Relevance = npt.NDArray[np.bool_]

_CELLS_AT_ONCE = 1 << 22  # queries x database images ranked at a time: bounds memory to some 100 MiB


def mean_average_precision(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    *,
    topk: int | None = None,
) -> float:
    """Return mAP@topk, or mAP@all where ``topk`` is None.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed; row order breaks ties.
        query_labels: (Q,) int64.
        database_labels: (N,) int64.
        topk: ranks that count, at least 1; more than N is N.

    Raises:
        InputError: nothing to rank, lengths that disagree, or topk below 1.
    """
    _check(query_codes, database_codes, query_labels, database_labels, topk)
    return _mean(
        average_precision(relevant)
        for relevant in _ranked(query_codes, database_codes, query_labels, database_labels, topk)
    )


def mean_precision(
    query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels, *, topk: int
) -> float:
    """Return precision@topk, the mean over queries; arguments and errors as in :func:`mean_average_precision`."""
    _check(query_codes, database_codes, query_labels, database_labels, topk)
    return _mean(
        relevant.mean(axis=1) for relevant in _ranked(query_codes, database_codes, query_labels, database_labels, topk)
    )


def mean_average_precision_of_answers(
    ids: Ids, query_labels: Labels, database_labels: Labels, *, topk: int | None = None
) -> float:
    """Return the mAP of answers that a server ranked; equal to the last bit to that of the same codes.

    Args:
        ids: (Q, n) int64, rows of the database in ranked order; -1 is padding. mAP@all needs n = N.
        query_labels: (Q,) int64.
        database_labels: (N,) int64.
        topk: ranks that count; None is all n.

    Raises:
        InputError: nothing to rank, lengths that disagree, or an id that is no row of the database.
    """
    if ids.ndim != 2 or ids.size == 0 or len(ids) != len(query_labels):
        raise InputError(f"ids {list(ids.shape)} must be [Q, n] for {len(query_labels)} query labels")
    if topk is not None and topk < 1:
        raise InputError(f"topk = {topk} must be at least 1")
    if ids.min() < -1 or ids.max() >= len(database_labels):
        raise InputError(f"ids {ids.min()} to {ids.max()} are no rows of a database of {len(database_labels)}")
    ids = ids[:, :topk]
    rows = max(1, _CELLS_AT_ONCE // ids.shape[1])
    return _mean(
        average_precision(_same_class(part, query_labels[start : start + rows], database_labels))
        for start in range(0, len(ids), rows)
        for part in (ids[start : start + rows],)
    )


def average_precision(relevant: Relevance) -> npt.NDArray[np.float64]:
    """(Q, n) bool, relevance at each rank -> (Q,) float64; see the module for its normalisation."""
    hits = np.cumsum(relevant, axis=1, dtype=np.float64)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    precision *= relevant
    return np.asarray(precision.sum(axis=1) / np.maximum(hits[:, -1], 1))


def _ranked(
    query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels, topk: int | None
) -> Iterator[Relevance]:
    """Yield the relevance (q, min(topk, N)) of some queries' answers at a time."""
    database = np.unpackbits(database_codes, axis=1).astype(np.float32)
    ones = database.sum(axis=1)
    rows = max(1, _CELLS_AT_ONCE // len(database_codes))
    for start in range(0, len(query_codes), rows):
        query = np.unpackbits(query_codes[start : start + rows], axis=1).astype(np.float32)
        # |a xor b| = |a| + |b| - 2 a.b: exact in float32 for codes of at most 1024 bits, and one matrix product.
        distances = (query.sum(axis=1)[:, None] + ones - 2 * (query @ database.T)).astype(np.int16)
        order = np.argsort(distances, axis=1, kind="stable")[:, :topk]
        yield _same_class(order, query_labels[start : start + rows], database_labels)


def _same_class(ids: npt.NDArray[np.integer], query_labels: Labels, database_labels: Labels) -> Relevance:
    return np.asarray((database_labels[ids] == query_labels[:, None]) & (ids >= 0))


def _mean(parts: Iterator[npt.NDArray[np.float64]]) -> float:
    return float(np.concatenate(list(parts)).mean())


def _check(
    query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels, topk: int | None
) -> None:
    problems = []
    for name, codes, labels in (
        ("query", query_codes, query_labels),
        ("database", database_codes, database_labels),
    ):
        if codes.ndim != 2 or codes.dtype != np.uint8 or codes.size == 0 or labels.shape != (len(codes),):
            problems.append(
                f"{name} codes {codes.dtype} {list(codes.shape)} and labels {list(labels.shape)} "
                "must be uint8 [N, B] and [N], N at least 1"
            )
    if not problems and query_codes.shape[1] != database_codes.shape[1]:
        problems.append(f"query codes have {query_codes.shape[1]} bytes, database codes {database_codes.shape[1]}")
    if topk is not None and topk < 1:
        problems.append(f"topk = {topk} must be at least 1")
    if problems:
        raise InputError("; ".join(problems))
