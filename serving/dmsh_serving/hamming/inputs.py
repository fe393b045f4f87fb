"""The checks that every kind of Hamming search makes before it starts."""

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.contract import MAX_BITS
from dmsh_serving.errors import InputError

__all__ = [
    "Mask",
    "check_codes_and_queries",
    "checked_mask",
    "checked_radius",
    "padded_queries",
]

Mask = npt.NDArray[np.bool_]


def check_codes_and_queries(queries: Codes, codes: Codes) -> None:
    """Raise :class:`InputError` unless both are uint8 (N, B) of one width of 1 to ``contract.MAX_BITS`` / 8 bytes."""
    for name, array in (("queries", queries), ("codes", codes)):
        if array.dtype != np.uint8 or array.ndim != 2:
            raise InputError(f"{name} must be uint8 [N, bytes], got {array.dtype} {list(array.shape)}")
    if queries.shape[1] != codes.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} bytes per code but the codes have {codes.shape[1]}: "
            "both must be made with the same number of bits"
        )
    if not 1 <= codes.shape[1] <= MAX_BITS // 8:
        raise InputError(
            f"codes of {codes.shape[1]} bytes cannot be searched: give codes of 1 to {MAX_BITS // 8} bytes"
        )


def checked_mask(allowed: Mask | None, count: int) -> Mask | None:
    """Return ``allowed`` as a contiguous array, or None; raise :class:`InputError` unless it is bool (count,)."""
    if allowed is None:
        return None
    if allowed.dtype != np.bool_ or allowed.shape != (count,):
        raise InputError(
            f"allowed must be bool [{count}], one for each code, got {allowed.dtype} {list(allowed.shape)}"
        )
    return np.ascontiguousarray(allowed)


def checked_radius(radius: int) -> int:
    """Return ``radius``, at most ``contract.MAX_BITS``; raise :class:`InputError` unless it is a distance."""
    if not isinstance(radius, int | np.integer) or radius < 0:
        raise InputError(f"radius = {radius} is out of range: a Hamming distance is a whole number, at least 0")
    return min(int(radius), MAX_BITS)


def padded_queries(queries: Codes, slot: int) -> Codes:
    """Return queries (Q, B) as contiguous rows of ``slot`` bytes, each filled up with zeros."""
    padded = np.zeros((len(queries), slot), np.uint8)
    padded[:, : queries.shape[1]] = queries
    return padded
