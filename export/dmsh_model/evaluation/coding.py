"""Codes of chosen images, a chunk at a time: images of a mapped file may not fit into memory."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labelled import Indices
from dmsh_serving.codes import Codes

__all__ = ["Images", "chunks_of", "codes_of_rows"]

# A multiple of the networks' batch size: a chunk then makes the same batches as all images at once.
_IMAGES_AT_ONCE = 1024

Images = npt.NDArray[np.uint8]


def chunks_of(rows: Indices) -> int:
    """Return how many chunks ``rows`` are coded in, each at least a part of one: for a progress display."""
    return max(1, -(-len(rows) // _IMAGES_AT_ONCE))


def codes_of_rows(
    codes_of: Callable[[Images], Codes],
    images: Images,
    rows: Indices,
    *,
    on_chunk: Callable[[], object] | None = None,
) -> Codes:
    """Return the codes (R, B) uint8 of ``images[rows]``.

    Args:
        codes_of: a network's ``codes``.
        images: (N, H, W, 3) uint8; may be a mapped file.
        rows: (R,) int64, in the order of the codes.
        on_chunk: called after every chunk.
    """
    codes = []
    for chunk in np.split(rows, range(_IMAGES_AT_ONCE, len(rows), _IMAGES_AT_ONCE)):
        codes.append(codes_of(images[chunk]))
        if on_chunk:
            on_chunk()
    return np.concatenate(codes)
