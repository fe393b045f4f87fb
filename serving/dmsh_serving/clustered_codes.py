"""Codes stored once each with the ids that share them: the layout for galleries whose codes cluster."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID
from dmsh_serving.hamming_inputs import Codes, Mask, check_codes_and_queries, checked_mask, checked_radius
from dmsh_serving.hamming_radius import RadiusResult


@dataclass(frozen=True)
class ClusteredCodes:
    """Equal codes stored once.

    A *place* is a position in ``ids``; group u holds the places [starts[u], starts[u + 1]), all with code u.

    Attributes:
        codes: (U, B) uint8, all different, in ascending byte order.
        starts: (U + 1,) int64, from 0 to N, strictly ascending.
        ids: (N,) int64, not negative, ascending within a group, none twice.
    """

    codes: Codes
    starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]

    def search(
        self, queries: Codes, k: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the k nearest of every query, ordered by (distance, id).

        Args:
            queries: (Q, B) uint8, packed; Q may be 0.
            k: results a query, 1 to ``contract.MAX_K``.
            threads: at most so many; None takes the CPUs this process may use.
            allowed: (N,) bool over places, those that may be found; None for all.

        Returns:
            distances (Q, k) int32 and places (Q, k) int64; beyond the allowed ones ``contract.PAD_DISTANCE`` and
            ``contract.PAD_ID``.
        """
        check_codes_and_queries(queries, self.codes)
        allowed = checked_mask(allowed, len(self.ids))
        distances = np.full((len(queries), checked_k(k)), PAD_DISTANCE, np.int32)
        places = np.full(distances.shape, PAD_ID, np.int64)
        for index, query in enumerate(queries):
            found_distances, found = self._ordered(query, allowed)
            count = min(k, len(found))
            distances[index, :count], places[index, :count] = found_distances[:count], found[:count]
        return distances, places

    def search_radius(
        self, queries: Codes, radius: int, *, threads: int | None = None, allowed: Mask | None = None
    ) -> RadiusResult:
        """Return every place at most ``radius`` from each query, ordered by (distance, id); ``rows`` are places."""
        check_codes_and_queries(queries, self.codes)
        allowed = checked_mask(allowed, len(self.ids))
        offsets, all_distances, all_places = [0], [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for query in queries:
            distances, places = self._ordered(query, allowed)
            count = int(np.searchsorted(distances, checked_radius(radius), side="right"))
            offsets.append(offsets[-1] + count)
            all_distances.append(distances[:count])
            all_places.append(places[:count])
        return RadiusResult(np.array(offsets), np.concatenate(all_distances), np.concatenate(all_places))

    def _ordered(self, query: Codes, allowed: Mask | None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        group = np.unpackbits(query ^ self.codes, axis=1).sum(axis=1, dtype=np.int32)
        distances = np.repeat(group, np.diff(self.starts))
        places = np.arange(len(self.ids)) if allowed is None else np.flatnonzero(allowed)
        order = places[np.lexsort((self.ids[places], distances[places]))]
        return distances[order], order


@dataclass(frozen=True)
class LayoutChoice:
    """Which layout a gallery gets, and the measurement that says so.

    Attributes:
        layout: "plain" (every code in row order) or "clustered" (:class:`ClusteredCodes`).
        reason: one line for people.
        distinct: number of different codes.
    """

    layout: str
    reason: str
    distinct: int


def cluster(codes: Codes, ids: npt.NDArray[np.int64]) -> ClusteredCodes:
    """Return the clustered layout of codes (N, B) uint8 and their ids (N,) int64, in any order."""
    order = np.lexsort((ids, *codes.T[::-1]))
    ordered = codes[order]
    first = np.ones(len(codes), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.append(np.flatnonzero(first), len(codes)).astype(np.int64)
    return ClusteredCodes(np.ascontiguousarray(ordered[first]), starts, np.ascontiguousarray(ids[order]))


def choose_layout(codes: Codes) -> LayoutChoice:
    """Return the layout that codes (N, B) uint8 should have; the answers of both are equal."""
    distinct = len(np.unique(np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1])))))
    if 2 * distinct <= len(codes):
        return LayoutChoice("clustered", f"{distinct} of {len(codes)} codes are different", distinct)
    return LayoutChoice("plain", f"{distinct} of {len(codes)} codes are different", distinct)
