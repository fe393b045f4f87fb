"""All retrieval metrics of one set of codes, in the order (Hamming distance, database row).

Definitions, each a mean over the queries unless it says otherwise:

- *AP@k over found*: precision@i summed over the ranks i <= k that hold a relevant image, divided by their number. What
  most of the hashing literature's code computes.
- *AP@k over possible*: the same sum divided by min(k, all relevant images): a missed image costs.
- *mAP@all*: k is the whole database; there the two agree.
- *precision@k*: relevant images among the first k, divided by k (by N if the database has fewer).
- *recall@k*: relevant images among the first k, divided by all relevant.
- *precision within a radius*: relevant images among those within that Hamming distance; a query with none within it
  counts as 0, and how many do is told.
- *curve*: precision and recall within each radius. Its precision leaves out queries with nothing within the radius
  (there it is not defined, and counting 0 would bend the curve), its recall those that have no relevant image.

Everywhere else a query that no database image is relevant to counts as 0; how many are is told.

*Range under ties*: mAP if, at equal distance, relevant images come last, and if they come first. Whatever order
another tool gives ties, its mAP lies between. Told for mAP@all and for AP@k over possible; AP@k over found has
no such bounds, as finding one image more can lower it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_model.data.labels import Labels
from dmsh_model.evaluation.ranks import RankedRelevance, rank_relevance
from dmsh_serving.codes import Codes

__all__ = ["LOOKUP_RADIUS", "AtRank", "CurvePoint", "Range", "Retrieval", "WithinRadius", "measure_retrieval"]

LOOKUP_RADIUS = 2  # the radius that a hash table can be probed within, as the literature reports it


@dataclass(frozen=True)
class Range:
    """The least and the most that an order of ties can give."""

    least: float
    most: float


@dataclass(frozen=True)
class AtRank:
    """Metrics of the first k ranks; see the module for their definitions."""

    k: int
    map_over_found: float
    map_over_possible: float
    map_over_possible_under_ties: Range
    precision: float
    recall: float


@dataclass(frozen=True)
class WithinRadius:
    """Metrics of the images within a Hamming distance.

    Attributes:
        radius: the distance, included.
        precision: mean over all queries; one with nothing within the radius counts as 0.
        empty_queries: how many those are.
    """

    radius: int
    precision: float
    empty_queries: int


@dataclass(frozen=True)
class CurvePoint:
    """One point of the precision-recall curve: means over the queries for which each is defined."""

    radius: int
    precision: float
    recall: float


@dataclass(frozen=True)
class Retrieval:
    """How well codes retrieve.

    Attributes:
        queries: their number.
        database: images of the database.
        queries_without_relevant: queries that no image of the database is relevant to.
        map_all: mAP@all.
        map_all_under_ties: what another order of ties could make of it.
        within_radius: metrics within ``LOOKUP_RADIUS``.
        at: metrics of the first k ranks, as asked for.
        curve: from the least radius that holds anything to the largest distance there is.
    """

    queries: int
    database: int
    queries_without_relevant: int
    map_all: float
    map_all_under_ties: Range
    within_radius: WithinRadius
    at: list[AtRank]
    curve: list[CurvePoint]


def measure_retrieval(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Labels,
    database_labels: Labels,
    *,
    ks: Sequence[int] = (),
) -> Retrieval:
    """Return every metric; memory depends on neither the size of the database nor its similarities.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed; row order breaks ties. May be a mapped file.
        query_labels: (Q,) int64, or (Q, C) uint8 multi-hot: an image that shares a label is relevant.
        database_labels: (N,) int64, or (N, C) uint8 multi-hot. May be a mapped file.
        ks: numbers of ranks, each at least 1.

    Raises:
        InputError: nothing to rank, arrays that do not fit each other, or a k below 1.
    """
    ranked = rank_relevance(query_codes, database_codes, query_labels, database_labels, [None, *ks])
    relevant = ranked.relevant
    everything, *at = (_at_rank(ranked, relevant, column) for column in range(len(ranked.cutoffs)))
    return Retrieval(
        queries=len(query_codes),
        database=len(database_codes),
        queries_without_relevant=int((relevant == 0).sum()),
        map_all=everything.map_over_found,
        map_all_under_ties=everything.map_over_possible_under_ties,
        within_radius=_within(ranked, LOOKUP_RADIUS),
        at=[dataclasses.replace(row, k=k) for k, row in zip(ks, at, strict=True)],
        curve=_curve(ranked, relevant),
    )


def _at_rank(ranked: RankedRelevance, relevant: npt.NDArray[np.int64], column: int) -> AtRank:
    k = int(ranked.cutoffs[column])
    sums, found = ranked.sums[:, column], ranked.found[:, column]
    possible = np.maximum(np.minimum(k, relevant), 1)
    return AtRank(
        k=k,
        map_over_found=float((sums / np.maximum(found, 1)).mean()),
        map_over_possible=float((sums / possible).mean()),
        map_over_possible_under_ties=Range(
            float((ranked.lowest[:, column] / possible).mean()), float((ranked.highest[:, column] / possible).mean())
        ),
        precision=float((found / k).mean()),
        recall=float((found / np.maximum(relevant, 1)).mean()),
    )


def _within(ranked: RankedRelevance, radius: int) -> WithinRadius:
    totals, hits = (counts[:, : radius + 1].sum(axis=1) for counts in (ranked.totals, ranked.hits))
    return WithinRadius(radius, float((hits / np.maximum(totals, 1)).mean()), int((totals == 0).sum()))


def _curve(ranked: RankedRelevance, relevant: npt.NDArray[np.int64]) -> list[CurvePoint]:
    totals, hits = (np.cumsum(counts, axis=1) for counts in (ranked.totals, ranked.hits))
    occurring = np.flatnonzero(ranked.totals.any(axis=0))
    answered = relevant > 0
    points = []
    for radius in range(int(occurring[0]), int(occurring[-1]) + 1):
        filled = totals[:, radius] > 0
        precision = (hits[filled, radius] / totals[filled, radius]).mean()
        recall = (hits[answered, radius] / relevant[answered]).mean() if answered.any() else 0.0
        points.append(CurvePoint(radius, float(precision), float(recall)))
    return points
