"""Re-ranking inside ties by the query's logits: ``rerank="asymmetric"``, off unless asked for.

A code says on which side of 0 a logit lies; the query's own logits also say how far. The weighted Hamming distance
adds |logit j| for each bit j that differs, so that a bit the query is sure of counts for more than one near the
threshold. It is an asymmetric distance of Gordo, Perronnin, Gong and Lazebnik, "Asymmetric Distances for Binary
Embeddings", IEEE TPAMI 36(1), 2014: only the stored side is binary.

The k nearest are found by (Hamming distance, id), as without re-ranking. Then those at equal Hamming distance are
ordered by (weighted distance, id). The set of answers and their distances do not change, and distances still ascend.
Ordering all k by the weighted distance was measured too: it gains a little over the whole database and loses in the
first hundred ranks, which people look at (docs/ranking.md).
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import check_codes, pack
from dmsh_serving.contract import PAD_ID
from dmsh_serving.errors import InputError

__all__ = ["ASYMMETRIC", "asymmetric_order"]

ASYMMETRIC: Final = "asymmetric"


def asymmetric_order(
    logits: npt.NDArray[np.floating[Any]],
    candidate_codes: npt.NDArray[np.uint8],
    distances: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the order of each query's candidates by (distance, weighted distance, id); padding stays last.

    Apply it with ``numpy.take_along_axis(ids, order, axis=1)``, and likewise to rows; distances stay as they are.

    Args:
        logits: (Q, K) float32 of the queries.
        candidate_codes: (Q, k, ceil(K/8)) uint8, the codes of the candidates; any value if the id is padding.
        distances: (Q, k) int32, their Hamming distances, ``contract.PAD_DISTANCE`` for padding.
        ids: (Q, k) int64, ``contract.PAD_ID`` for padding.

    Returns:
        (Q, k) int64, a permutation of each row.

    Raises:
        InputError: shapes or dtypes that do not fit each other, or a logit that is NaN or infinite.
    """
    query_codes = pack(logits)
    if logits.dtype.kind != "f":
        raise InputError(f"logits must be floating-point numbers, got {logits.dtype}: bits have no weights")
    fits = candidate_codes.shape[:2] == distances.shape == ids.shape and len(ids) == len(logits)
    if ids.ndim != 2 or not fits:
        raise InputError(
            "logits, candidate codes, distances and ids must be [Q, K], [Q, k, bytes], [Q, k] and [Q, k], got "
            f"{list(logits.shape)}, {list(candidate_codes.shape)}, {list(distances.shape)} and {list(ids.shape)}"
        )
    bits = logits.shape[1]
    check_codes(candidate_codes[ids != PAD_ID], bits)
    weights = np.zeros((len(logits), 8 * query_codes.shape[1]))
    weights[:, :bits] = np.abs(logits)
    weighted = np.zeros(ids.shape)
    for byte in range(query_codes.shape[1]):
        # Byte by byte in one order, never by a matrix product: equal codes get equal sums, in any batch, so ids decide.
        table = _sums_of_subsets(weights[:, 8 * byte : 8 * byte + 8])
        differing = candidate_codes[:, :, byte] ^ query_codes[:, byte, None]
        weighted += np.take_along_axis(table, differing.astype(np.intp), axis=1)
    return np.lexsort((ids, weighted, distances), axis=1).astype(np.int64, copy=False)


def _sums_of_subsets(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (Q, 256): for each byte, the sum of those weights (Q, 8) whose bit is set, the first bit highest."""
    table = np.zeros((len(weights), 1))
    for column in range(weights.shape[1] - 1, -1, -1):
        table = np.concatenate([table, table + weights[:, column, None]], axis=1)
    return table
