"""Every image of a collection in one total order, so that any page of it can be given, whatever was given before.

The score of an image is the sum of its distances to the examples that it should be like, less the sum of its distances
to those that it should be unlike. Whole numbers, so exact; with one example to be like, it is the distance. Images
are ordered by (score, id) ascending. No two images have the same id, so the order is total: the page after a
card (score, id) begins with the first image that is greater, and no image comes twice or is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.web.codes.collection import Collection, Places, Words, words_of

__all__ = ["Cursor", "Examples", "Ranking", "Scores", "ranking_of"]

Scores = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Examples:
    """What to look for: codes to be like (P, B) uint8 and to be unlike (U, B) uint8; P + U is at least 1."""

    like: Codes
    unlike: Codes

    def scores(self, words: Words) -> Scores:
        """Return the score (N,) of every code of ``words`` (N, W)."""
        found = np.zeros(len(words), np.int32)
        for codes, sign in ((self.like, 1), (self.unlike, -1)):
            for query in words_of(codes):
                for column, word in enumerate(query):
                    found += np.int32(sign) * np.bitwise_count(words[:, column] ^ word)
        return found


@dataclass(frozen=True)
class Cursor:
    """The last image that was given."""

    score: int
    number: int


@dataclass(frozen=True)
class Ranking:
    """M images in order.

    Attributes:
        places: (M,) int64, where each is in the collection.
        scores: (M,) int32, ascending.
        ids: (M,) int64, ascending within equal scores.
    """

    places: Places
    scores: Scores
    ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.places.nbytes + self.scores.nbytes + self.ids.nbytes

    def within(self, radius: int | None) -> int:
        """Return how many images have a score of at most ``radius``."""
        return len(self) if radius is None else int(np.searchsorted(self.scores, radius, side="right"))

    def after(self, cursor: Cursor) -> int:
        """Return the index of the first image that is greater than ``cursor`` in (score, id) order."""
        first, end = (int(np.searchsorted(self.scores, cursor.score, side=side)) for side in ("left", "right"))
        return first + int(np.searchsorted(self.ids[first:end], cursor.number, side="right"))


def ranking_of(collection: Collection, examples: Examples, allowed: Sequence[Places] = ()) -> Ranking:
    """Order the images of ``collection`` by (score, id).

    Args:
        collection: the images.
        examples: what to look for.
        allowed: lists of places, ascending; only images in every one of them are ordered.
    """
    places = np.arange(len(collection))
    for each in allowed:
        places = np.intersect1d(places, each, assume_unique=True)
    scores = examples.scores(collection.words if not allowed else collection.words[places])
    order = np.argsort(scores, kind="stable")  # places ascend, and ids with them: equal scores stay in id order
    return Ranking(places[order], scores[order], collection.ids[places[order]])
