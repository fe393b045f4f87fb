"""The keys of a part of a gallery: any strings, stored as UTF-8 one after the other."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import InputError

__all__ = ["Keys", "joined_keys", "packed_keys"]

_ROWS_AT_ONCE: Final = 1 << 16  # bounds the index arrays of a copy
_BYTES_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True)
class Keys:
    """N strings; string i is ``text[offsets[i] : offsets[i + 1]]``.

    Attributes:
        offsets: (N + 1,) int64, from 0 to the length of ``text``, ascending.
        text: uint8, UTF-8.
    """

    offsets: npt.NDArray[np.int64]
    text: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        return self.text[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: npt.NDArray[np.int64]) -> "Keys":
        """Return the keys of ``rows`` (M,) int64, in that order."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        text = np.empty(int(offsets[-1]), np.uint8)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(rows))
            first, end = offsets[start], offsets[stop]
            shift = np.repeat(self.offsets[rows[start:stop]] - offsets[start:stop], lengths[start:stop])
            text[first:end] = self.text[shift + np.arange(first, end)]
        return Keys(offsets, text)

    def check(self, count: int, where: str) -> None:
        """Raise :class:`InputError` unless these are ``count`` strings of valid UTF-8."""
        offsets, text = self.offsets, self.text
        ascending = offsets.shape == (count + 1,) and bool((offsets[1:] >= offsets[:-1]).all())
        if not ascending or offsets[0] != 0 or offsets[-1] != text.size:
            raise InputError(f"{where}: the key offsets do not fit {count} codes and {text.size} bytes of keys")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, text.size, _BYTES_AT_ONCE):
                decoder.decode(text[start : start + _BYTES_AT_ONCE].data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: its keys are not valid text (UTF-8): {error.reason}") from None
        # Whole text, cut only where a character begins, makes whole strings.
        begins = offsets[offsets < text.size]
        if ((text[begins] & 0xC0) == 0x80).any():
            raise InputError(f"{where}: its keys are not valid text (UTF-8): one begins inside a character")


def packed_keys(keys: Sequence[str]) -> Keys:
    """Return ``keys`` packed; refuse what is not text, such as a file name in another encoding."""
    encoded = []
    for key in keys:
        if not isinstance(key, str):
            raise InputError(f"key {key!r} is no text: keys are strings")
        try:
            encoded.append(key.encode())
        except UnicodeEncodeError:
            raise InputError(f"key {key!a} is not valid text (UTF-8): rename the file, or give keys") from None
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(key) for key in encoded], out=offsets[1:])
    return Keys(offsets, np.frombuffer(b"".join(encoded), np.uint8))


def joined_keys(parts: Sequence[Keys]) -> Keys:
    """Return the keys of all ``parts``, in their order."""
    ends = np.cumsum([0, *(part.text.size for part in parts)])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    text = np.concatenate([np.empty(0, np.uint8), *(part.text for part in parts)])
    return Keys(np.concatenate([*offsets, ends[-1:]]).astype(np.int64), text)
