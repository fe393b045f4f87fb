"""Labelled images, of one class each or of several, and which of them are queries, database and training set."""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labels import Labels
from dmsh_serving.errors import InputError

__all__ = ["MOST_CLASSES", "Indices", "LabelledImages", "Split"]

Indices = npt.NDArray[np.int64]

MOST_CLASSES = 1 << 16  # far beyond every data set; far below what a mistaken column would make of it

_IMAGES_HASHED_AT_ONCE = 1024
_SHOWN = 3


@dataclass(frozen=True)
class Split:
    """Indices into the images: ``query`` shares none with ``database`` and ``train``.

    The order of ``database`` is that of the gallery: position i is id i, which breaks ties of the distance. Whether
    ``train`` is part of ``database`` depends on the protocol; for images of a plain folder it is. ``given`` says that
    the split came with the images and was not drawn from a seed.
    """

    query: Indices
    database: Indices
    train: Indices
    given: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over the three index lists."""
        digest = hashlib.sha256()
        for part in (self.query, self.database, self.train):
            digest.update(f"{len(part)}\n".encode())
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class LabelledImages:
    """Images of known class, or with several labels each.

    Attributes:
        source: the folder's name, ``mnist5k``, or the like: for people.
        images: (N, H, W, 3) uint8, RGB; may be a mapped file.
        labels: (N,) int64, indices into ``class_names``; or (N, C) uint8 multi-hot, a column for each of
            ``class_names`` and at least one 1 a row.
        names: N names, unique.
        class_names: names of the classes, at least two.
        bad: one line for each file that could not be read and was left out.
        given_split: the split that comes with the images; None if it is to be drawn.

    Raises:
        InputError: counts that differ, a label that is none of ``class_names``, or an image without any.
    """

    source: str
    images: npt.NDArray[np.uint8]
    labels: Labels
    names: list[str]
    class_names: list[str]
    bad: list[str] = dataclasses.field(default_factory=list)
    given_split: Split | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        counts = (len(self.images), len(self.labels), len(self.names))
        if len(set(counts)) > 1:
            raise InputError(
                f"{self.source}: {counts[0]} images, {counts[1]} labels and {counts[2]} names: one each is needed"
            )
        if self.labels.ndim == 2:
            self._check_rows()
        elif self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise InputError(
                f"{self.source}: labels {self.labels.min()} to {self.labels.max()} must be 0 to "
                f"{len(self.class_names) - 1}, one of {len(self.class_names)} classes"
            )

    def _check_rows(self) -> None:
        if self.labels.shape[1] != len(self.class_names) or (self.labels > 1).any():
            raise InputError(
                f"{self.source}: labels {list(self.labels.shape)} must be rows of 0 and 1, a column for each of "
                f"{len(self.class_names)} labels"
            )
        without = np.flatnonzero(~self.labels.any(axis=1))
        if len(without):
            first = ", ".join(self.names[row] for row in without[:_SHOWN])
            raise InputError(
                f"{self.source}: {len(without)} images have no label, so that nothing is relevant to them (leave them "
                f"out): {first}" + (" ..." if len(without) > _SHOWN else "")
            )

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over shape, pixels, labels and class names."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for start in range(0, len(self.images), _IMAGES_HASHED_AT_ONCE):  # a mapped file may not fit into memory
            digest.update(self.images[start : start + _IMAGES_HASHED_AT_ONCE].tobytes())
        if self.labels.ndim == 1:
            digest.update(self.labels.astype("<i8").tobytes())
        else:
            digest.update(b"multi-hot")
            digest.update(self.labels.tobytes())
        return digest.hexdigest()
