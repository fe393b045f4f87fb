"""Images that come as arrays of pixels, brought to an image size."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmsh_model.data import image_cache
from dmsh_serving.images.decode import image_from_pixels
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import ImageSet

__all__ = ["resized"]

_BATCH = 256


def resized(
    pixels: npt.NDArray[np.uint8],
    image_size: int,
    framing: Framing,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> npt.NDArray[np.uint8]:
    """Return images (N, H, W, 3) uint8 as (N, image_size, image_size, 3), by the decoder's rule.

    Those of the right size are returned as they are. Others are kept in ``cache``, if given: see
    :func:`dmsh_model.data.image_cache.gather`, which also says what is raised.
    """
    if pixels.shape[1:3] == (image_size, image_size):
        return pixels
    return image_cache.gather(
        lambda: _batches(pixels, image_size, framing, on_progress),
        len(pixels),
        image_size,
        key=lambda: image_cache.pixels_key(pixels, image_size, framing),
        cache=cache,
    ).images


def _batches(
    pixels: npt.NDArray[np.uint8], image_size: int, framing: Framing, on_progress: Callable[[int, int], None] | None
) -> Iterator[ImageSet]:
    for start in range(0, len(pixels), _BATCH):
        images = np.stack([image_from_pixels(image, image_size, framing) for image in pixels[start : start + _BATCH]])
        yield ImageSet(images, [str(start + row) for row in range(len(images))], [])
        if on_progress:
            on_progress(start + len(images), len(pixels))
