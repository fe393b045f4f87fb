"""How images stream through a quantisation: so many at once, the first few looked at, a uniform sample kept."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from dmsh_serving.images import ImageSet

Images = npt.NDArray[np.uint8]
_BATCH_PIXELS = 2 * 224 * 224  # measured: larger batches leave the caches and are slower


def batch_size(image_size: int) -> int:
    """Return how many images at a time keep calibration within the caches and little memory."""
    return max(1, min(64, _BATCH_PIXELS // image_size**2))


def first_images(batches: Iterable[ImageSet], count: int) -> tuple[Images, Iterator[ImageSet]]:
    """Return the first ``count`` images (or all, if there are fewer) and all batches, those of them included."""
    rest = iter(batches)
    taken: list[ImageSet] = []
    while sum(len(batch.images) for batch in taken) < count and (batch := next(rest, None)) is not None:
        taken.append(batch)
    if not taken:
        return np.empty((0, 1, 1, 3), np.uint8), rest
    return np.concatenate([batch.images for batch in taken])[:count], itertools.chain(taken, rest)


class Sample:
    """A uniform sample of at most ``most`` images of a stream, the same one every time (reservoir sampling)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self._random = np.random.RandomState(0)
        self._images: list[Images] = []
        self.names: list[str] = []

    def add(self, images: Images, names: npt.NDArray[np.object_]) -> None:
        """Take in the next images (N, H, W, 3) of the stream with their names (N,)."""
        for image, name in zip(images, names, strict=True):
            self._seen += 1
            place = self._random.randint(self._seen)
            if len(self._images) < self._most:
                # Inserted at random too, so that the order of a sorted folder is lost.
                self._images.insert(place, image.copy())
                self.names.insert(place, name)
            elif place < self._most:
                self._images[place], self.names[place] = image.copy(), name

    def images(self) -> Images:
        """Return the sample, (n, H, W, 3) in the order of ``names``."""
        return np.stack(self._images)
