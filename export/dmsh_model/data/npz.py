"""Labelled images in one .npz file.

Either ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Fashion-MNIST and its like are passed around: test images
are the queries, training images the database and what is trained on. Or ``images`` and ``labels``: the split is drawn.
Images are uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3); labels integers (N,) or (N, 1), or multi-hot (N, C).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labelled import MOST_CLASSES, LabelledImages, Split
from dmsh_model.data.resized_arrays import resized
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = ["load_npz"]

_WITH_SPLIT = (("x_train", "y_train"), ("x_test", "y_test"))
_WITHOUT = (("images", "labels"),)
_KEYS = "x_train, y_train, x_test and y_test, or images and labels"


def load_npz(
    path: Path,
    image_size: int,
    framing: Framing = Framing(),
    *,
    on_progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> LabelledImages:
    """Read an .npz file of images and labels; pickled objects in it are refused.

    Args:
        path: the file.
        image_size: side of an image in pixels; others are resized.
        framing: how those become square.
        on_progress: called with (images done, images in all) where they are resized.
        cache: see :func:`dmsh_model.data.image_cache.gather`.

    Raises:
        InputError: missing, damaged, other keys, or arrays that are no images or no labels or do not fit each other.
    """
    pairs = _read(path)
    pixels = [_pixels(path, images) for images, _ in pairs]
    labels = [_labels(path, each) for _, each in pairs]
    for images, each in zip(pixels, labels, strict=True):
        if len(images) != len(each):
            raise InputError(f"{path}: {len(images)} images and {len(each)} labels: give one label an image")
    if len({(*images.shape[1:], *each.shape[1:]) for images, each in zip(pixels, labels, strict=True)}) > 1:
        raise InputError(f"{path}: training and test arrays differ in the size of their images or the form of labels")
    every = np.concatenate(labels)
    classes = every.shape[1] if every.ndim == 2 else int(every.max()) + 1
    if classes < 2:
        raise InputError(f"{path} has only one class: training needs at least two")
    images = resized(np.concatenate(pixels), image_size, framing, on_progress=on_progress, cache=cache)
    split = None
    if len(pairs) == 2:
        database = np.arange(len(pixels[0]), dtype=np.int64)
        split = Split(np.arange(len(pixels[0]), len(every), dtype=np.int64), database, database, given=True)
    names = [f"{path.name}[{row}]" for row in range(len(every))]
    return LabelledImages(path.name, images, every, names, [str(label) for label in range(classes)], given_split=split)


def _read(path: Path) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return pairs of images and labels: training and test ones, or a single pair."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give an .npz file with {_KEYS}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            for pairs in (_WITH_SPLIT, _WITHOUT):
                if {key for pair in pairs for key in pair} <= set(archive.files):
                    found = [(archive[images], archive[labels]) for images, labels in pairs]
                    if not all(isinstance(array, np.ndarray) for pair in found for array in pair):
                        raise InputError(f"{path} holds members that are no arrays")
                    return found
            held = ", ".join(archive.files) or "nothing"
    except InputError:
        raise
    except Exception as error:  # the parsers below NumPy raise nearly any kind for hostile bytes
        raise InputError(f"{path} is not an .npz file of images and labels: {error}") from error
    raise InputError(f"{path} holds {held}: needed are {_KEYS}")


def _pixels(path: Path, images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 1)
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)) or images.size == 0:
        raise InputError(
            f"{path}: images {images.dtype} {list(images.shape)} must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        )
    if not grey:
        return images
    return np.ascontiguousarray(np.broadcast_to(images.reshape(*images.shape[:3], 1), (*images.shape[:3], 3)))


def _labels(path: Path, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if labels.dtype.kind in "iu" and (labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)):
        if labels.size and not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
            raise InputError(f"{path}: labels {labels.min()} to {labels.max()} must be 0 to {MOST_CLASSES - 1}")
        return labels.reshape(-1).astype(np.int64)
    if labels.dtype.kind in "biu" and labels.ndim == 2:
        if labels.size and not 0 <= labels.min() <= labels.max() <= 1:
            raise InputError(f"{path}: multi-hot labels must be 0 or 1, found {labels.min()} to {labels.max()}")
        return labels.astype(np.uint8)
    raise InputError(f"{path}: labels {labels.dtype} {list(labels.shape)} must be integers [N], or multi-hot [N, C]")
