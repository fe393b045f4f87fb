"""Every code within a Hamming distance, ordered by (distance, row)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming_inputs import Mask, check_codes_and_queries, checked_mask, checked_radius, checked_threads


@dataclass(frozen=True)
class RadiusResult:
    """The hits of Q queries, one query's after the other's; those of query q lie in [offsets[q], offsets[q + 1]).

    Attributes:
        offsets: (Q + 1,) int64.
        distances: (M,) int32, ascending within a query.
        rows: (M,) int64, ascending within equal distances of a query.
    """

    offsets: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]

    def of(self, query: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the distances and rows of one query."""
        part = slice(self.offsets[query], self.offsets[query + 1])
        return self.distances[part], self.rows[part]


def search_radius(
    queries: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    radius: int,
    *,
    threads: int | None = None,
    allowed: Mask | None = None,
) -> RadiusResult:
    """Return every code at most ``radius`` from each query.

    Args:
        queries: (Q, B) uint8, packed; Q may be 0.
        codes: (N, B) uint8, packed; N may be 0.
        radius: largest distance, at least 0.
        threads: at most so many; None takes the CPUs this process may use.
        allowed: (N,) bool, the rows that may be found; None for all.

    Raises:
        InputError: a dtype, shape, radius or thread count other than the above.
    """
    from dmsh_serving.hamming_oracle import search_radius_oracle

    check_codes_and_queries(queries, codes)
    checked_threads(threads)
    hits = search_radius_oracle(queries, codes, checked_radius(radius), checked_mask(allowed, len(codes)))
    offsets = np.zeros(len(queries) + 1, np.int64)
    np.cumsum([len(rows) for _, rows in hits], out=offsets[1:])
    distances = np.concatenate([np.empty(0, np.int32), *(distances for distances, _ in hits)])
    rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in hits)])
    return RadiusResult(offsets, distances, rows)
