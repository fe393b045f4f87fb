"""Memory that Python hands to compiled code. It starts on a cache line, so that no two threads write to one line."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["COUNTER", "LINE", "WORD", "aligned_words", "new_record"]

LINE: Final = 64  # bytes of a cache line

# A number that has an address of its own: atomic operations work on it.
WORD: Final = np.dtype([("value", np.int64)], align=True)
# A WORD with a cache line of its own: every thread of a job writes to it, and reads the fields behind it all the time.
COUNTER: Final = np.dtype({"names": ["value"], "formats": [np.int64], "itemsize": LINE}, align=True)


def aligned_words(count: int) -> npt.NDArray[np.int64]:
    """Return (count,) int64, not initialised."""
    memory = np.empty(count + LINE // 8, np.int64)
    start = -memory.ctypes.data % LINE // 8
    return memory[start : start + count]


def new_record(kind: np.dtype[np.void], **fields: int) -> npt.NDArray[np.void]:
    """Return (1,) of ``kind`` with these fields; the others are 0.

    Raises:
        ValueError: ``kind`` has no field of that name.
    """
    words = aligned_words(-(-kind.itemsize // 8))
    words[:] = 0
    record: npt.NDArray[Any] = words.view(np.uint8)[: kind.itemsize].view(kind)
    for name, value in fields.items():
        record[name] = value
    return record
