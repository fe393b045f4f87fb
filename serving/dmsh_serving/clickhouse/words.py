"""Codes as ClickHouse stores them, and a checksum that both sides compute.

A code is kept as one UInt64 column per 8 bytes, its last word filled up with zeros: XOR and bit counts of UInt64
columns are the fastest that ClickHouse has. A Hamming distance does not depend on the order of bits, so words are
little-endian, as memory holds them.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, bytes_per_code

__all__ = ["Words", "checksum", "checksum_sql", "codes_of_words", "crc_of_strings", "word_names", "words_of_codes"]

Words = npt.NDArray[np.uint64]

_ODD: Final = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its odd multiples are well spread
_SHIFT: Final = 29


def word_names(bits: int) -> list[str]:
    """Return the names of the columns that hold a code."""
    return [f"w{index}" for index in range(-(-bytes_per_code(bits) // 8))]


def words_of_codes(codes: Codes) -> Words:
    """Return codes (N, B) uint8 as words (N, ceil(B/8)) uint64."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view("<u8")


def codes_of_words(words: Words, bits: int) -> Codes:
    """Return words (N, W) uint64 as codes (N, ceil(bits/8)) uint8."""
    flat = np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(len(words), 8 * words.shape[1])
    return np.ascontiguousarray(flat[:, : bytes_per_code(bits)])


def crc_of_strings(texts: Iterable[bytes]) -> Words:
    """Return the CRC-32 of each text, (N,) uint64: the one hash of strings that ClickHouse and Python both have."""
    return np.fromiter(map(zlib.crc32, texts), np.uint64)


def checksum(numbers: Sequence[npt.NDArray[Any]]) -> int:
    """Return a sum over N rows, modulo 2^64, that does not depend on their order.

    It finds what goes wrong by accident: rows that are missing, doubled or changed. It is no proof against a forger.

    Args:
        numbers: columns (N,) of 64-bit integers or uint64.
    """
    mixed = np.full(len(numbers[0]), _ODD, np.uint64)  # so that a row of zeros counts too
    for index, column in enumerate(numbers):
        mixed += column.astype(np.uint64, copy=False) * np.uint64(_factor(index))
    mixed ^= mixed >> np.uint64(_SHIFT)
    mixed *= np.uint64(_ODD)
    return int(mixed.sum(dtype=np.uint64)) if len(mixed) else 0


def checksum_sql(numbers: Sequence[str]) -> str:
    """Return the SQL of :func:`checksum` over the UInt64 expressions ``numbers``."""
    terms = [f"{number} * toUInt64({_factor(index)})" for index, number in enumerate(numbers)]
    mixed = " + ".join([f"toUInt64({_ODD})", *terms])
    mixed = f"bitXor({mixed}, bitShiftRight({mixed}, {_SHIFT}))"
    return f"sumWithOverflow({mixed} * toUInt64({_ODD}))"


def _factor(index: int) -> int:
    return _ODD * (2 * index + 3) % 2**64
