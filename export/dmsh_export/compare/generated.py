"""Images made by a formula, for checks when no real ones are at hand."""

import numpy as np
import numpy.typing as npt

__all__ = ["generated_images"]


def generated_images(count: int, image_size: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return ``count`` images (count, image_size, image_size, 3) uint8: noise at several scales, each its own contrast.

    Coarse blocks imitate objects, fine noise imitates texture; the first two are all black and all white.
    """
    random = np.random.default_rng(seed)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    for index in range(count):
        image = np.zeros((image_size, image_size, 3))
        for cells in (2, 5, 16, image_size):
            coarse = random.normal(size=(cells, cells, 3)) * random.uniform(5, 60)
            rows = np.arange(image_size) * cells // image_size
            image += coarse[rows][:, rows]
        images[index] = np.clip(image + random.uniform(40, 215), 0, 255).astype(np.uint8)
    images[:1] = 0
    images[1:2] = 255
    return images
