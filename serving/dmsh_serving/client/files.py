"""Image files as the input of a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import InputError
from dmsh_serving.files import open_regular

__all__ = ["rows_of_files"]


def rows_of_files(files: Sequence[bytes | Path]) -> npt.NDArray[np.object_]:
    """Return files, given as bytes or path, as (N, 1) object, bytes.

    Raises:
        InputError: neither bytes nor a path.
        OSError: a path that cannot be read, or is of a pipe or a device.
    """
    for file in files:
        if not isinstance(file, bytes | Path):
            raise InputError(f"a file is given as bytes or as a pathlib.Path, not as {type(file).__name__}")
    data = np.empty((len(files), 1), dtype=np.object_)
    data[:, 0] = [_content(file) if isinstance(file, Path) else bytes(file) for file in files]
    return data


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()
