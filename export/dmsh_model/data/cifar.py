"""CIFAR-10 from a folder that holds it already, in the protocols that deep hashing reports.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Protocols are named by the size of their
database. The first two draw from all 60,000 images, always with the same seed: the split alone moves mAP by 0.1.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.resized_arrays import resized
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = ["PROTOCOLS", "load_cifar10"]

# 1,000 queries; 5,000 training images, which are or are not in the database.
_DRAWN = {
    "cifar10-54000": SplitOptions(100, 500, seed=0, train_in_database=False),
    "cifar10-59000": SplitOptions(100, 500, seed=0, train_in_database=True),
}
# The data set's own test images are the queries, its training images all the rest.
_OFFICIAL = "cifar10-50000"
PROTOCOLS = (*_DRAWN, _OFFICIAL)


def load_cifar10(
    protocol: str,
    folder: Path,
    image_size: int,
    framing: Framing = Framing(),
    *,
    on_progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> LabelledImages:
    """Read CIFAR-10, with the split of a protocol.

    Args:
        protocol: one of ``PROTOCOLS``.
        folder: holds ``cifar-10-batches-py``, whose files are checked before they are opened.
        image_size: side of an image in pixels; other than 32 is resized.
        framing: its filter counts.
        on_progress: called with (images done, images in all) where they are resized.
        cache: see :func:`dmsh_model.data.image_cache.gather`.

    Raises:
        InputError: the data is not there or damaged; there is never a download.
    """
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(folder, train=is_train, download=False) for is_train in (True, False))
    except RuntimeError as error:
        raise InputError(
            f"{protocol}: {folder / CIFAR10.base_folder} is not there, or not whole: get {CIFAR10.url} and unpack it "
            f"in {folder}"
        ) from error
    labels = np.array([*train.targets, *test.targets], np.int64)
    names = [f"{train.classes[label]}/{row:05d}" for row, label in enumerate(labels)]
    images = resized(np.concatenate([train.data, test.data]), image_size, framing, on_progress=on_progress, cache=cache)
    data = LabelledImages(protocol, images, labels, names, list(train.classes))
    if protocol == _OFFICIAL:
        database = np.arange(len(train.data), dtype=np.int64)
        split = Split(np.arange(len(train.data), len(labels), dtype=np.int64), database, database, given=True)
    else:
        split = dataclasses.replace(split_images(data, _DRAWN[protocol]), given=True)
    return dataclasses.replace(data, given_split=split)
