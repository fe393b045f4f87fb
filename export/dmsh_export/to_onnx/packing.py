"""Packing inside a graph, as one product: bits times a matrix of powers of two. Its sums are exact in any type."""

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import bytes_per_code

__all__ = ["packing"]


def packing(bits: int) -> npt.NDArray[np.float32]:
    """Return the matrix (K, ceil(K/8)) whose product with bits is the packed code: bit j weighs 2^(7 - j mod 8)."""
    weights = np.zeros((bits, bytes_per_code(bits)), np.float32)
    places = np.arange(bits)
    weights[places, places // 8] = 2.0 ** (7 - places % 8)
    return weights
