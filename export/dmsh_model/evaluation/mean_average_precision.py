"""Mean average precision, in the one defined order of a search; all other metrics: :mod:`dmsh_model.evaluation.report`.

A query's answer is the whole database, or its first k, ordered by (Hamming distance, row) ascending. mAP is
ambiguous under ties of the distance; this order makes it one number, and it is the order the server answers in.

Average precision of an answer: the mean of precision@i over the ranks i that hold a relevant image. Here it is divided
by the number of relevant images *among the first k* (all of them for mAP@all); a query with none counts as 0. This is
the normalisation of the hashing literature's mAP@k; dividing by min(k, all relevant) gives lower numbers.
"""

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labels import Labels, labels_problem, relevance_of_ids
from dmsh_model.evaluation.ranks import rank_relevance
from dmsh_serving.codes import Codes
from dmsh_serving.errors import InputError

__all__ = ["Ids", "mean_average_precision", "mean_average_precision_of_answers"]

Ids = npt.NDArray[np.int64]

_CELLS_AT_ONCE = 1 << 22  # answers scored at a time: bounds memory to some 100 MiB


def mean_average_precision(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    *,
    topk: int | None = None,
) -> float:
    """Return mAP@topk, or mAP@all if ``topk`` is None.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed; row order breaks ties.
        query_labels: (Q,) int64, or (Q, C) uint8 multi-hot: an image that shares a label is relevant.
        database_labels: (N,) int64, or (N, C) uint8 multi-hot.
        topk: ranks that count, at least 1; more than N is N.

    Raises:
        InputError: nothing to rank, arrays that do not fit each other, or topk below 1.
    """
    ranked = rank_relevance(query_codes, database_codes, query_labels, database_labels, [topk])
    return float((ranked.sums[:, 0] / np.maximum(ranked.found[:, 0], 1)).mean())


def mean_average_precision_of_answers(
    ids: Ids, query_labels: Labels, database_labels: Labels, *, topk: int | None = None
) -> float:
    """Return the mAP of answers that a server ranked; equal to the last bit to that of the same codes.

    Args:
        ids: (Q, n) int64, rows of the database in ranked order; -1 is padding. mAP@all needs n = N.
        query_labels: (Q,) int64, or (Q, C) uint8 multi-hot.
        database_labels: (N,) int64, or (N, C) uint8 multi-hot.
        topk: ranks that count; None is all n.

    Raises:
        InputError: nothing to rank, arrays that do not fit each other, or an id that is no row of the database.
    """
    if ids.ndim != 2 or ids.size == 0 or len(ids) != len(query_labels):
        raise InputError(f"ids {list(ids.shape)} must be [Q, n] for {len(query_labels)} query labels")
    if problem := labels_problem(query_labels, database_labels):
        raise InputError(problem)
    if topk is not None and topk < 1:
        raise InputError(f"topk = {topk} must be at least 1")
    if ids.min() < -1 or ids.max() >= len(database_labels):
        raise InputError(f"ids {ids.min()} to {ids.max()} are no rows of a database of {len(database_labels)}")
    ids = ids[:, :topk]
    rows = max(1, _CELLS_AT_ONCE // (ids.shape[1] * max(1, query_labels[0].size)))
    parts = [slice(start, start + rows) for start in range(0, len(ids), rows)]
    averages = [
        _average_precision(ids[part], relevance_of_ids(ids[part], query_labels[part], database_labels))
        for part in parts
    ]
    return float(np.concatenate(averages).mean())


def _average_precision(ids: Ids, relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(Q, n) ids in ranked order and their relevance -> (Q,) float64.

    Summed one after the other in the order of the ids, as :mod:`dmsh_model.evaluation.ranks` meets them: the
    same answer then gives the same bits.
    """
    hits = np.cumsum(relevant, axis=1)
    precision = np.where(relevant, hits / np.arange(1, relevant.shape[1] + 1), 0)
    in_order = np.take_along_axis(precision, np.argsort(ids, axis=1, kind="stable"), axis=1)
    return np.asarray(np.cumsum(in_order, axis=1)[:, -1] / np.maximum(hits[:, -1], 1))
