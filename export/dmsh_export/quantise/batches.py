"""Images as a quantisation reads them: batches of a fixed size, the first few images, and a uniform sample."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import check_images
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import (
    ImageSet,
    Progress,
    image_paths,
    iter_image_batches,
    iter_listed_batches,
    load_npy,
    none_away,
)

__all__ = ["Images", "Sample", "batch_size", "first_images", "spread_batches", "spread_images"]

Images = npt.NDArray[np.uint8]
_BATCH_PIXELS = 2 * 224 * 224  # measured: larger batches leave the caches and are slower


def batch_size(image_size: int) -> int:
    """Return the batch size at which calibration stays within the CPU's caches, 1 to 64 images."""
    return max(1, min(64, _BATCH_PIXELS // image_size**2))


def first_images(batches: Iterable[ImageSet], count: int) -> tuple[Images, Iterator[ImageSet]]:
    """Return the first ``count`` images (all, if there are fewer), and an iterator over all batches, those included."""
    rest = iter(batches)
    taken: list[ImageSet] = []
    while sum(len(batch.images) for batch in taken) < count and (batch := next(rest, None)) is not None:
        taken.append(batch)
    if not taken:
        return np.empty((0, 1, 1, 3), np.uint8), rest
    return np.concatenate([batch.images for batch in taken])[:count], itertools.chain(taken, rest)


def spread_images(source: Path, image_size: int, count: int, framing: Framing = Framing()) -> Images | None:
    """Return ``count`` images spread evenly over ``source``: a folder that is sorted by class gives some of each class.

    Only these images are read. An image that cannot be read is left out.

    Args:
        source: a folder or an .npy file, as :func:`dmsh_serving.images.read.iter_image_batches` takes them.
        image_size: side of an image in pixels.
        count: number of images; all, if there are fewer.
        framing: how pictures become images.

    Returns:
        (n, H, W, 3) uint8 in the order of ``source``; None if ``source`` is neither, is empty, or none of the images
        can be read.

    Raises:
        InputError: an .npy file that does not hold such images.
    """
    if source.suffix == ".npy" and source.is_file():
        array = load_npy(source, f"images, uint8 [N, {image_size}, {image_size}, 3]")
        check_images(array, image_size, str(source))
        return np.array(array[_spread(len(array), count)], np.uint8) if len(array) else None
    paths = image_paths(source) if source.is_dir() else []
    if not paths:
        return None
    names = [paths[row].relative_to(source).as_posix() for row in _spread(len(paths), count)]
    try:
        listed = iter_listed_batches(source, names, image_size, count, framing, skip_bad=True)
        batches = list(none_away(source, listed))
    except InputError:  # none can be read: the pass over all images reports why
        return None
    return np.concatenate([batch.images for batch in batches])


def spread_batches(
    source: Path,
    image_size: int,
    size: int,
    most: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[ImageSet]:
    """Yield at most ``most`` images spread evenly over ``source``, ``size`` at a time; only these are read.

    The other arguments, and the errors, are those of :func:`dmsh_serving.images.read.iter_image_batches`.
    """
    if source.is_dir() and len(paths := image_paths(source)) > most:
        names = [paths[row].relative_to(source).as_posix() for row in _spread(len(paths), most)]
        listed = iter_listed_batches(
            source, names, image_size, size, framing, skip_bad=skip_bad, on_progress=on_progress
        )
        yield from none_away(source, listed)
        return
    if source.suffix == ".npy" and source.is_file():
        array = load_npy(source, f"images, uint8 [N, {image_size}, {image_size}, 3]")
        check_images(array, image_size, str(source))
        rows = _spread(len(array), most)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield ImageSet(np.array(array[part], np.uint8), [f"{source.name}[{row}]" for row in part], [])
            if on_progress:
                on_progress(start + len(part), len(rows))
        return
    yield from iter_image_batches(source, image_size, size, framing, skip_bad=skip_bad, on_progress=on_progress)


def _spread(length: int, count: int) -> npt.NDArray[np.int64]:
    """Return ``count`` ascending positions below ``length``, each in the middle of one of ``count`` equal parts."""
    count = min(length, count)
    return (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)


class Sample:
    """A uniform sample of at most ``most`` images of a stream (reservoir sampling, always the same random numbers)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self._random = np.random.RandomState(0)
        self._images: list[Images] = []
        self.names: list[str] = []

    def add(self, images: Images, names: npt.NDArray[np.object_]) -> None:
        """Add the next images (N, H, W, 3) uint8 of the stream with their names (N,)."""
        for image, name in zip(images, names, strict=True):
            self._seen += 1
            place = self._random.randint(self._seen)
            if len(self._images) < self._most:
                # Inserted at a random place, so that the sample does not keep the order of a sorted folder.
                self._images.insert(place, image.copy())
                self.names.insert(place, name)
            elif place < self._most:
                self._images[place], self.names[place] = image.copy(), name

    def images(self) -> Images:
        """Return the sample, (n, H, W, 3) in the order of ``names``."""
        return np.stack(self._images)
