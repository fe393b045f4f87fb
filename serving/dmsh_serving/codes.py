"""Binary codes: packing, unpacking, and the rule that turns logits into bits.

Bit j of a code is 1 where logit j > 0, else 0 (so +0 and -0 give 0). Bits are stored most significant
first (``numpy.packbits`` order); for K not a multiple of 8 the last byte is filled with zero bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.contract import MAX_BITS, MIN_BITS
from dmsh_serving.errors import InputError

__all__ = [
    "Codes",
    "Encoded",
    "bytes_per_code",
    "check_codes",
    "checked_bits",
    "pack",
    "require_finite",
    "uniform_codes",
    "unpack",
]

Codes = npt.NDArray[np.uint8]


def checked_bits(bits: int) -> int:
    """Return ``bits`` if a code may have that many, else raise :class:`InputError`."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"bits = {bits} is out of range: a code has {MIN_BITS} to {MAX_BITS} bits")
    return bits


def bytes_per_code(bits: int) -> int:
    """Return ceil(bits / 8)."""
    return (checked_bits(bits) + 7) // 8


def pack(values: npt.NDArray[Any]) -> Codes:
    """Pack logits or bits (N, K) into codes (N, ceil(K/8)) uint8.

    A value above 0 gives 1, else 0, in a boolean or integer array (bits) and in a float array (logits) alike.

    Raises:
        InputError: not two-dimensional, not real numbers, K out of range, or a logit that is NaN or infinite.
    """
    if values.ndim != 2:
        raise InputError(f"logits must have shape [N, K], got {list(values.shape)}")
    if values.dtype.kind not in "biuf":
        raise InputError(f"logits or bits must be numbers, got {values.dtype}")
    checked_bits(values.shape[1])
    if np.issubdtype(values.dtype, np.floating):
        require_finite(values)
    return np.packbits(values > 0, axis=1)


def require_finite(logits: npt.NDArray[Any]) -> None:
    """Raise :class:`InputError`, naming the first row, if a logit of (N, K) is NaN or infinite."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InputError(f"logits of row {row} hold NaN or Inf ({int((~finite).sum())} such rows): no code can be made")


@dataclass(frozen=True)
class Encoded:
    """What an encoder returns: ``code`` (N, B) uint8 and ``logits`` (N, K) float32, which may hold NaN or Inf."""

    code: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]

    def checked(self) -> "Encoded":
        """Return self; raise :class:`InputError`, naming the first row, if a logit is NaN or infinite."""
        require_finite(self.logits)
        return self


def unpack(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Unpack codes (N, ceil(bits/8)) uint8 into bits (N, bits) uint8 of 0 and 1.

    Raises:
        InputError: wrong dtype or width, or a fill bit that is not zero (the codes have another bit count).
    """
    check_codes(codes, bits)
    return np.unpackbits(codes, axis=1, count=bits)


def check_codes(codes: npt.NDArray[Any], bits: int) -> None:
    """Raise :class:`InputError` unless ``codes`` is uint8 (N, ceil(bits/8)) with zero fill bits."""
    width = bytes_per_code(bits)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
        raise InputError(f"codes of {bits} bits must be uint8 [N, {width}], got {codes.dtype} {list(codes.shape)}")
    fill = 8 * width - bits
    if fill and bool((codes[:, -1] & ((1 << fill) - 1)).any()):
        raise InputError(f"codes have bits set beyond bit {bits}: they were made with another bit count or bit order")


def uniform_codes(count: int, bits: int, seed: int) -> Codes:
    """Return codes (count, ceil(bits/8)) uint8 of independent fair bits, the same for the same seed."""
    width = (bits + 7) // 8
    codes = np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)
    codes[:, -1] &= 256 - (1 << (8 * width - bits))
    return codes
