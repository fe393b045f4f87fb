"""Exact Hamming search over packed codes: ordered by (distance, row), always, for any thread count.

Typical use::

    from dmsh_serving.hamming import search
    distances, rows = search(queries, codes, k=10)  # uint8 (Q, B) and (N, B) -> int32 and int64 (Q, k)
"""

from dmsh_serving.hamming.nearest import search
from dmsh_serving.hamming.radius import RadiusResult, search_radius

__all__ = ["RadiusResult", "search", "search_radius"]
