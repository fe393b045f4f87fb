"""Memory that starts on a cache line, so that no two threads write to one line."""

from typing import Final

import numpy as np
import numpy.typing as npt

LINE: Final = 8  # 8-byte words


def aligned_words(count: int) -> npt.NDArray[np.int64]:
    """Return (count,) int64 that starts on a cache line, not initialised."""
    memory = np.empty(count + LINE, np.int64)
    start = -memory.ctypes.data % (8 * LINE) // 8
    return memory[start : start + count]
