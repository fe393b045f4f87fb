"""Slow, obvious Hamming searches. The fast ones are tested against them."""

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID

__all__ = ["search_oracle", "search_radius_oracle"]

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


def search_oracle(queries: Codes, codes: Codes, k: int, allowed: Mask | None = None) -> tuple[Distances, Rows]:
    """Return what :func:`dmsh_serving.hamming.search` must return, by one stable sort per query.

    Args:
        queries: (Q, B) uint8.
        codes: (N, B) uint8.
        k: results per query.
        allowed: (N,) bool, whether each row may be found; None if all may.

    Returns:
        distances (Q, k) int32 and rows (Q, k) int64, ordered by (distance, row), padded as :func:`search` pads them.
    """
    distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
    rows = np.full((len(queries), k), PAD_ID, np.int64)
    for index, query in enumerate(queries):
        ordered_distances, order = _ordered(query, codes, allowed)
        found = min(k, len(order))
        distances[index, :found] = ordered_distances[:found]
        rows[index, :found] = order[:found]
    return distances, rows


def search_radius_oracle(
    queries: Codes, codes: Codes, radius: int, allowed: Mask | None = None
) -> list[tuple[Distances, Rows]]:
    """Return for every query the distances and rows within ``radius``, ordered by (distance, row).

    The arguments are those of :func:`search_oracle`.
    """
    hits = []
    for query in queries:
        distances, rows = _ordered(query, codes, allowed)
        found = int(np.searchsorted(distances, radius, side="right"))
        hits.append((distances[:found], rows[:found]))
    return hits


def _ordered(query: Codes, codes: Codes, allowed: Mask | None) -> tuple[Distances, Rows]:
    rows = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    distances = np.unpackbits(query ^ codes[rows], axis=1).sum(axis=1, dtype=np.int32)
    order = np.argsort(distances, kind="stable")
    return distances[order], rows[order]
