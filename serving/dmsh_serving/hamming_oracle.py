"""The slow, obvious Hamming search that :mod:`dmsh_serving.hamming` is tested against."""

import numpy as np
import numpy.typing as npt

from dmsh_serving.contract import PAD_DISTANCE, PAD_ID


def search_oracle(
    queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8], k: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return what :func:`dmsh_serving.hamming.search` must return, by one stable sort a query.

    Args:
        queries: (Q, B) uint8.
        codes: (N, B) uint8.
        k: results a query.

    Returns:
        distances (Q, k) int32 and rows (Q, k) int64, ordered by (distance, row), padded beyond N.
    """
    distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
    rows = np.full((len(queries), k), PAD_ID, np.int64)
    for index, query in enumerate(queries):
        all_distances = np.unpackbits(query ^ codes, axis=1).sum(axis=1, dtype=np.int32)
        order = np.argsort(all_distances, kind="stable")[:k]
        distances[index, : len(order)] = all_distances[order]
        rows[index, : len(order)] = order
    return distances, rows
