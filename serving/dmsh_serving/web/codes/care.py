"""What an engineer looks at before a model is trusted: near-duplicates, shared codes, the balance of the bits."""

import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, unpack
from dmsh_serving.errors import InputError
from dmsh_serving.hamming import search_radius
from dmsh_serving.web.codes.collection import Collection, Places, words_of

__all__ = ["BitStatistics", "Group", "Groups", "StoppedError", "bit_statistics", "duplicates", "shared"]

MOST_COMPARED: Final = 200_000  # different codes of which every pair is compared: some seconds
MOST_PAIRS: Final = 5_000_000
MOST_CELLS: Final = 64  # of a side of the correlation plot
_SAMPLE: Final = 100_000
_SAMPLE_PAIRS: Final = 200_000
_QUERIES_A_STEP: Final = 512
_HITS_A_STEP: Final = 1 << 23  # some 300 MB, if every code is within the radius
_STRONGEST: Final = 10


class StoppedError(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Group:
    """Images that belong together: their number, and the first of their places in id order."""

    count: int
    places: Places


@dataclass(frozen=True)
class Groups:
    """All groups there are are counted; the largest are listed, equal ones by their first image.

    Attributes:
        count: how many groups.
        images: how many images are in one.
        groups: the largest.
    """

    count: int
    images: int
    groups: list[Group]


@dataclass(frozen=True)
class BitStatistics:
    """The bits of a sample of codes.

    Attributes:
        images: codes in the sample.
        distinct: different codes in the whole gallery.
        ones: (K,) the share of codes in which each bit is 1.
        correlation: (C, C), C at most ``MOST_CELLS``: Pearson's correlation of bits i and j; if K is larger, a cell
            stands for a block, and has the strongest correlation in it. 0 for a bit that never changes.
        strongest: the pairs of different bits with the strongest correlation, and that.
        distances: (K + 1,) how many of some pairs of images have each distance.
    """

    images: int
    distinct: int
    ones: npt.NDArray[np.float64]
    correlation: npt.NDArray[np.float64]
    strongest: list[tuple[int, int, float]]
    distances: npt.NDArray[np.int64]


def duplicates(
    collection: Collection, radius: int, *, groups: int, members: int, stop: threading.Event | None = None
) -> Groups:
    """Return the images that are within ``radius`` of another one, grouped.

    Two images are in one group if a chain of images leads from one to the other, each at most ``radius`` bits from the
    next (single linkage). A group has at least two images.

    Args:
        collection: the images.
        radius: from 0 to the bits of a code.
        groups, members: how many groups are listed, and how many images of each.
        stop: set by whoever does not need the result any more.

    Raises:
        InputError: a radius out of range, too many different codes, or too many pairs.
        StoppedError: ``stop`` was set.
    """
    if not 0 <= radius <= collection.bits:
        raise InputError(f"radius = {radius} is out of range: codes of {collection.bits} bits are 0 to that far apart")
    distinct, of = _distinct(collection.codes)
    labels = np.arange(len(distinct))
    if radius > 0:
        if len(distinct) > MOST_COMPARED:
            raise InputError(
                f"{len(distinct):,} different codes are too many to compare every pair: at most {MOST_COMPARED:,}, or "
                "radius 0"
            )
        labels = _linked(len(distinct), _pairs(distinct, radius, stop))
    return _grouped(labels[of], groups, members)


def shared(collection: Collection, *, groups: int, members: int) -> Groups:
    """Return the images whose code another image has too, grouped by code; arguments as of :func:`duplicates`."""
    return _grouped(_distinct(collection.codes)[1], groups, members)


def bit_statistics(collection: Collection) -> BitStatistics:
    """Examine the bits of at most 100,000 codes, evenly spaced over the ids."""
    count = min(len(collection), _SAMPLE)
    places = np.linspace(0, len(collection) - 1, count).astype(np.int64) if count else np.empty(0, np.int64)
    bits = unpack(collection.codes[places], collection.bits).astype(np.float32)
    ones = bits.mean(axis=0, dtype=np.float64) if count else np.zeros(collection.bits)
    correlation: npt.NDArray[np.float64] = _correlation(bits, ones).round(6)
    upper = np.triu_indices(collection.bits, 1)
    order = np.argsort(-np.abs(correlation[upper]), kind="stable")[:_STRONGEST]
    strongest = [(int(upper[0][each]), int(upper[1][each]), float(correlation[upper][each])) for each in order]
    return BitStatistics(
        images=count,
        distinct=len(_distinct(collection.codes)[0]),
        ones=ones,
        correlation=_shrunk(correlation),
        strongest=strongest,
        distances=_distances(collection),
    )


def _distinct(codes: Codes) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Return the different codes, and for each image (N,) which of them it has."""
    if not len(codes):
        return codes, np.empty(0, np.int64)
    rows = np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1]))).reshape(-1)
    _, first, of = np.unique(rows, return_index=True, return_inverse=True)
    return codes[first], of.reshape(-1)


def _pairs(distinct: Codes, radius: int, stop: threading.Event | None) -> npt.NDArray[np.int64]:
    """Return every pair (P, 2) of different codes within ``radius``."""
    found: list[npt.NDArray[np.int64]] = []
    count = 0
    step = max(1, min(_QUERIES_A_STEP, _HITS_A_STEP // max(1, len(distinct))))
    for start in range(0, len(distinct), step):
        if stop is not None and stop.is_set():
            raise StoppedError
        queries = distinct[start : start + step]
        hits = search_radius(queries, distinct, radius)
        first = np.repeat(np.arange(start, start + len(queries)), np.diff(hits.offsets))
        later = hits.rows > first
        count += int(np.count_nonzero(later))
        if count > MOST_PAIRS:
            raise InputError(f"over {MOST_PAIRS:,} pairs are within {radius} bits: choose a smaller radius")
        found.append(np.stack([first[later], hits.rows[later]], axis=1))
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def _linked(count: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each of ``count`` nodes the smallest node that ``pairs`` link it with."""
    labels = np.arange(count)
    while True:
        smallest = np.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        linked = labels.copy()
        for side in range(2):
            np.minimum.at(linked, labels[pairs[:, side]], smallest)  # the whole group of a node follows
            np.minimum.at(linked, pairs[:, side], smallest)
        linked = linked[linked]
        if np.array_equal(linked, labels):
            return labels
        labels = linked


def _grouped(labels: npt.NDArray[np.int64], groups: int, members: int) -> Groups:
    order = np.argsort(labels, kind="stable")  # images of a group stay in id order
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    large = sizes > 1
    starts, sizes = starts[large], sizes[large]
    firsts = order[starts]
    listed = np.lexsort((firsts, -sizes))[:groups]
    return Groups(
        count=len(sizes),
        images=int(sizes.sum()),
        groups=[Group(int(sizes[each]), order[starts[each] :][: min(members, sizes[each])]) for each in listed],
    )


def _correlation(bits: npt.NDArray[np.float32], ones: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    both = (bits.T @ bits).astype(np.float64)  # counts below 2^24, so exact in float32
    covariance = both / max(1, len(bits)) - np.outer(ones, ones)
    deviation = np.sqrt(ones * (1 - ones))
    scale = np.outer(deviation, deviation)
    found: npt.NDArray[np.float64] = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return found


def _shrunk(correlation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a matrix with at most ``MOST_CELLS`` a side; the strongest value stands for its block."""
    block = -(-len(correlation) // MOST_CELLS)
    if block == 1:
        return correlation
    side = -(-len(correlation) // block)
    padded = np.zeros((side * block, side * block))
    padded[: len(correlation), : len(correlation)] = correlation - np.diag(np.diag(correlation))
    blocks = padded.reshape(side, block, side, block).transpose(0, 2, 1, 3).reshape(side, side, -1)
    strongest = np.abs(blocks).argmax(axis=2)[..., None]
    found: npt.NDArray[np.float64] = np.take_along_axis(blocks, strongest, axis=2)[..., 0]
    return found


def _distances(collection: Collection) -> npt.NDArray[np.int64]:
    count = len(collection)
    if count < 2:
        return np.zeros(collection.bits + 1, np.int64)
    generator = np.random.default_rng(0)
    first = generator.integers(0, count, _SAMPLE_PAIRS)
    second = (first + generator.integers(1, count, _SAMPLE_PAIRS)) % count  # another image
    one, other = words_of(collection.codes[first]), words_of(collection.codes[second])
    apart = np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64)
    found: npt.NDArray[np.int64] = np.bincount(apart, minlength=collection.bits + 1)
    return found
