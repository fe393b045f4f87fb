"""Requests to a ranker, and how many requests share one scan of the gallery.

Asks that search among the same codes share a scan, whose k is the largest of theirs. Each takes its own k from the
front of the scan's list: the order is total, so the k nearest begin any longer list. A scan costs more the larger its
k, so asks share one only if their k are alike. After the scan a radius cuts the list of an ask, and re-ranking orders
what is left within equal distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import checked_k
from dmsh_serving.codes import Codes, check_codes, pack
from dmsh_serving.contract import DEFAULT_K, MAX_FILTER_IDS, MAX_RESULTS, PAD_DISTANCE, PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.snapshot import SearchResult
from dmsh_serving.hamming.inputs import checked_radius
from dmsh_serving.ranker.engine import Engine
from dmsh_serving.ranker.rerank import asymmetric_order

__all__ = ["Ask", "Ranked", "rank"]

_Key = tuple[int, bytes | None]  # how large k is, and the filter
_Rows = tuple[int, npt.NDArray[np.int64]]  # place of an ask, and rows of its queries


@dataclass(frozen=True)
class Ask:
    """One request to a ranker.

    Attributes:
        codes: (N, B) uint8; N may be 0.
        k: results per query, 1 to ``contract.MAX_K``; of all queries together at most ``contract.MAX_RESULTS``.
        radius: find only codes at most this far; None for any distance.
        filters: (N, F) int64, the ids that each query may find, filled up with ``contract.PAD_ID``; None for all. Ids
            that the gallery does not have do no harm.
        logits: (N, K) float32 from which ``codes`` were made, to order answers at equal distance; see
            :mod:`dmsh_serving.ranker.rerank`. None leaves them in (distance, id) order.
    """

    codes: Codes
    k: int = DEFAULT_K
    radius: int | None = None
    filters: npt.NDArray[np.int64] | None = None
    logits: npt.NDArray[np.float32] | None = None

    def check(self, bits: int) -> None:
        """Raise :class:`InputError` unless a gallery of ``bits`` can be asked this."""
        checked_k(self.k)
        check_codes(self.codes, bits)
        if len(self.codes) * self.k > MAX_RESULTS:
            raise InputError(
                f"{len(self.codes)} codes with k = {self.k} are {len(self.codes) * self.k} results: a request may ask "
                f"for {MAX_RESULTS}, so send at most {MAX_RESULTS // self.k} codes at once, or ask for fewer"
            )
        if self.radius is not None:
            checked_radius(self.radius)
        if self.filters is not None:
            _check_filters(self.filters, len(self.codes))
        if self.logits is not None:
            _check_logits(self.logits, self.codes, bits)


@dataclass(frozen=True)
class Ranked:
    """The k nearest images of N codes, ordered by (distance, id), or inside a distance as re-ranked.

    Attributes:
        ids: (N, k) int64.
        distances: (N, k) int32.
        keys: (N, k) object, str.
        gallery_version: the one version that answered.
    """

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    keys: npt.NDArray[np.object_]
    gallery_version: str


def rank(engine: Engine, asks: Sequence[Ask], *, threads: int | None = None) -> list[Ranked]:
    """Answer all ``asks``, already checked, from one version of a gallery, in their order."""
    ids = [np.full((len(ask.codes), ask.k), PAD_ID, np.int64) for ask in asks]
    rows = [found.copy() for found in ids]
    distances = [np.full(found.shape, PAD_DISTANCE, np.int32) for found in ids]
    for (_, allowed), group in _scans(asks).items():
        found = engine.search(
            np.concatenate([asks[place].codes[queries] for place, queries in group]),
            max(asks[place].k for place, _ in group),
            radius=_widest([asks[place].radius for place, _ in group]),
            allowed=None if allowed is None else np.frombuffer(allowed, np.int64),
            threads=threads,
        )
        start = 0
        for place, queries in group:
            part, k = slice(start, start + len(queries)), asks[place].k
            start += len(queries)
            ids[place][queries] = found.ids[part, :k]
            rows[place][queries] = found.rows[part, :k]
            distances[place][queries] = found.distances[part, :k]
    return [
        _finished(engine, ask, SearchResult(ids[place], distances[place], rows[place]))
        for place, ask in enumerate(asks)
    ]


def _finished(engine: Engine, ask: Ask, found: SearchResult) -> Ranked:
    """Cut what was found for one ask at its radius, order it by its logits, and look up the keys."""
    ids, distances, rows = found.ids, found.distances, found.rows
    if ask.radius is not None:
        beyond = distances > ask.radius
        ids[beyond], rows[beyond], distances[beyond] = PAD_ID, PAD_ID, PAD_DISTANCE
    if ask.logits is not None and len(ask.codes):
        order = asymmetric_order(ask.logits, engine.codes_of(rows), distances, ids)
        ids = np.take_along_axis(ids, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    keys = np.array(engine.keys_of(rows), dtype=np.object_).reshape(rows.shape)
    return Ranked(ids, distances, keys, engine.version)


def _widest(radii: Sequence[int | None]) -> int | None:
    return None if None in radii else max(radius for radius in radii if radius is not None)


def _scans(asks: Sequence[Ask]) -> dict[_Key, list[_Rows]]:
    """Return, per scan, the queries of each ask that it answers."""
    scans: dict[_Key, list[_Rows]] = {}
    for place, ask in enumerate(asks):
        size = int(ask.k).bit_length() // 3  # alike: within a factor of 8
        every = np.arange(len(ask.codes))
        if not len(every):
            continue
        if ask.filters is None:
            scans.setdefault((size, None), []).append((place, every))
            continue
        own: dict[bytes, list[int]] = {}
        for query, allowed in enumerate(ask.filters):
            own.setdefault(allowed[allowed != PAD_ID].tobytes(), []).append(query)
        for filter_, queries in own.items():
            scans.setdefault((size, filter_), []).append((place, np.array(queries)))
    return scans


def _check_filters(filters: npt.NDArray[np.int64], queries: int) -> None:
    if filters.dtype != np.int64 or filters.ndim != 2 or len(filters) != queries:
        raise InputError(f"filter must be int64 [{queries}, F], got {filters.dtype} {list(filters.shape)}")
    if filters.shape[1] > MAX_FILTER_IDS:
        raise InputError(
            f"filter has {filters.shape[1]} ids per query: give at most {MAX_FILTER_IDS}, or build a gallery of them"
        )
    wrong = filters[filters < PAD_ID]
    if wrong.size:
        raise InputError(f"filter has id {wrong[0]}: ids are 0 or more, and {PAD_ID} fills shorter lists")


def _check_logits(logits: npt.NDArray[np.float32], codes: Codes, bits: int) -> None:
    if logits.dtype != np.float32 or logits.shape != (len(codes), bits):
        raise InputError(f"logits must be float32 [{len(codes)}, {bits}], got {logits.dtype} {list(logits.shape)}")
    if len(codes) and not np.array_equal(pack(logits), codes):
        raise InputError("the logits give other codes than those that are searched for: send both of one image")
