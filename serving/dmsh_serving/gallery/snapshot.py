"""One version of a gallery, in memory: what it holds, and search in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import PAD_DISTANCE, PAD_ID, PAD_KEY
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.keys import Keys, joined_keys
from dmsh_serving.gallery.part import Ids, Mask, Part, PartName, ascending_ids, check_ids
from dmsh_serving.hamming import search
from dmsh_serving.hamming.inputs import checked_radius

__all__ = ["Contents", "SearchResult", "Snapshot", "chained", "distinct_codes"]

_FEW: Final = 1 / 64  # of the codes: gathering fewer than these costs less than looking at a mask of all


@dataclass(frozen=True)
class SearchResult:
    """The answer of one snapshot to Q queries, ordered by (distance, id).

    Attributes:
        ids: (Q, k) int64; ``contract.PAD_ID`` is padding.
        distances: (Q, k) int32; ``contract.PAD_DISTANCE`` is padding.
        rows: (Q, k) int64 rows of the snapshot, for :meth:`Snapshot.keys_of`; ``PAD_ID`` is padding.
    """

    ids: Ids
    distances: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    """Everything a snapshot holds, in ascending id order.

    Attributes:
        ids: (N,) int64.
        codes: (N, ceil(bits/8)) uint8.
        keys: N strings, or None.
    """

    ids: Ids
    codes: Codes
    keys: Keys | None


@dataclass(frozen=True)
class Snapshot:
    """One version of a gallery: a chain of parts, lowest first, mapped read-only and already checked.

    A *row* counts through all parts from the lowest; rows that were removed keep their number, and are never found.
    """

    version: str
    path: Path
    parts: tuple[Part, ...]
    names: tuple[PartName, ...]
    live: tuple[Mask | None, ...]
    """Per part, (rows,) bool, the rows that are still there; None if all are."""

    @property
    def bits(self) -> int:
        """Bits per code."""
        return self.parts[0].bits

    @property
    def fingerprint(self) -> str:
        """The code space: the fingerprint of the model that made the codes."""
        return self.parts[0].fingerprint

    @property
    def has_keys(self) -> bool:
        """Whether each code carries a key (a name given by the user)."""
        return any(part.keys is not None for part in self.parts)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each part, and the number of rows."""
        found = [0]
        for part in self.parts:
            found.append(found[-1] + part.count)
        return found

    @property
    def count(self) -> int:
        """The number of codes."""
        return self.starts[-1] - sum(part.removed.size for part in self.parts)

    @property
    def next_id(self) -> int:
        """Larger than every id that was ever given out, those of removed codes included."""
        return self.parts[-1].next_id

    @property
    def codes(self) -> Codes:
        """(N, ceil(bits/8)) uint8, in ascending id order; read-only if there is one plain part, else a copy."""
        return self.contents().codes

    @property
    def ids(self) -> Ids:
        """(N,) int64, ascending."""
        return self.contents().ids

    def split(self, rows: Ids) -> Iterator[tuple[int, Ids]]:
        """Yield each part's index that ascending ``rows`` touch, with the rows counted within it."""
        return _split(rows, self.starts)

    def rows_of(self, ids: Ids) -> Ids:
        """Return the row of each of ``ids`` (M,) int64, ``contract.PAD_ID`` for an id that is not there."""
        rows = np.full(ids.shape, PAD_ID, np.int64)
        for part, live, start in zip(self.parts, self.live, self.starts, strict=False):
            found = part.rows_of(ids)
            there = found != PAD_ID
            if live is not None:
                there[there] = live[found[there]]
            rows[there] = found[there] + start
        return rows

    def live_rows(self, index: int) -> Ids:
        """Return the rows of part ``index`` that are still there, counted within it."""
        live = self.live[index]
        return np.arange(self.parts[index].count) if live is None else np.flatnonzero(live)

    def contents(self) -> Contents:
        """Return everything in ascending id order; a copy, unless there is one plain part."""
        (first, *above) = self.parts
        if not above and first.starts is None:
            return Contents(first.ids_of(np.arange(first.count)), first.codes, first.keys)
        rows = [self.live_rows(index) for index in range(len(self.parts))]
        ids = np.concatenate([part.ids_of(own) for part, own in zip(self.parts, rows, strict=True)])
        codes = np.concatenate([part.codes_of(own) for part, own in zip(self.parts, rows, strict=True)])
        order = np.argsort(ids)
        keys = None
        if self.has_keys:
            taken = [part.keys.take(own) for part, own in zip(self.parts, rows, strict=True) if part.keys is not None]
            keys = joined_keys(taken).take(order)
        return Contents(ids[order], codes[order], keys)

    def codes_of(self, rows: npt.NDArray[np.int64]) -> Codes:
        """Return the codes of ``rows`` of any shape S, as uint8 S + (B,); zeros for padding."""
        codes = np.zeros((rows.size, self.parts[0].codes.shape[1]), np.uint8)
        flat = rows.reshape(-1)
        index = np.searchsorted(self.starts[1:], flat, side="right")
        for number, part in enumerate(self.parts):
            own = (index == number) & (flat != PAD_ID)
            codes[own] = part.codes_of(flat[own] - self.starts[number])
        return codes.reshape(*rows.shape, codes.shape[1])

    def keys_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the keys of ``rows``, flattened; ``contract.PAD_KEY`` for padding or a gallery without keys."""
        flat = rows.reshape(-1)
        if not self.has_keys:
            return [PAD_KEY] * flat.size
        indices = np.searchsorted(self.starts[1:], flat, side="right").tolist()
        found = []
        for index, row in zip(indices, flat.tolist(), strict=True):
            keys = None if row == PAD_ID else self.parts[index].keys
            found.append(PAD_KEY if keys is None else keys[row - self.starts[index]])
        return found

    def search(
        self,
        queries: Codes,
        k: int,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        threads: int | None = None,
    ) -> SearchResult:
        """Return the k nearest codes of each query, the same for any layout, parts and threads.

        Args:
            queries: (Q, B) uint8.
            k: results per query, 1 to ``contract.MAX_K``; the rest is padding.
            radius: find only codes at most this far; None for any distance.
            allowed: (M,) int64, find only codes with these ids; unknown and repeated ids do no harm. None for all.
            threads: use at most this many; None takes the CPUs that this process may use.

        Raises:
            InputError: codes of another width or dtype, k or radius out of range, or ids that are no integers.
        """
        check_codes(queries, self.bits)
        if allowed is not None:
            check_ids(allowed)
        if allowed is not None and allowed.size <= _FEW * self.count:
            distances, rows, ids = self._nearest_of_few(queries, k, allowed, threads)
        else:
            found = [
                part.search(queries, k, threads=threads, allowed=mask)
                for part, mask in zip(self.parts, self._masks(allowed), strict=True)
            ]
            distances, rows, ids = self._nearest(found, k)
        if radius is not None:
            beyond = distances > checked_radius(radius)
            distances[beyond], rows[beyond], ids[beyond] = PAD_DISTANCE, PAD_ID, PAD_ID
        return SearchResult(ids, distances, rows)

    def _masks(self, allowed: Ids | None) -> list[Mask | None]:
        """Return for each part which of its rows may be found."""
        if allowed is None:
            return list(self.live)
        masks = [part.mask_of(allowed) for part in self.parts]
        return [mask if live is None else mask & live for mask, live in zip(masks, self.live, strict=True)]

    def _nearest_of_few(
        self, queries: Codes, k: int, allowed: Ids, threads: int | None
    ) -> tuple[npt.NDArray[np.int32], Ids, Ids]:
        """Return distances, rows and ids (Q, k) of the nearest among ``allowed``; only their codes are compared."""
        wanted = ascending_ids(allowed)
        rows = self.rows_of(wanted)
        there = rows != PAD_ID
        distances, places = search(queries, self.codes_of(rows[there]), k, threads=threads)
        padded_rows, padded_ids = (np.append(each[there], PAD_ID) for each in (rows, wanted))
        return distances, padded_rows[places], padded_ids[places]  # place -1, padding, is the last one

    def _nearest(
        self, found: list[tuple[npt.NDArray[np.int32], Ids]], k: int
    ) -> tuple[npt.NDArray[np.int32], Ids, Ids]:
        """Merge what each part found into distances, rows and ids (Q, k), in (distance, id) order."""
        all_distances, all_rows, all_ids = [], [], []
        for part, start, (distances, rows) in zip(self.parts, self.starts, found, strict=False):
            width = k if len(found) == 1 else min(k, part.count)  # what a part gives beyond its count is padding
            distances, rows = distances[:, :width], rows[:, :width]
            there = rows != PAD_ID
            ids = np.full(rows.shape, PAD_ID, np.int64)
            ids[there] = part.ids_of(rows[there])
            all_distances.append(distances)
            all_rows.append(np.where(there, rows + start, PAD_ID))
            all_ids.append(ids)
        if len(found) == 1:
            return all_distances[0], all_rows[0], all_ids[0]
        distances, rows, ids = (np.concatenate(each, axis=1) for each in (all_distances, all_rows, all_ids))
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        picked = [np.take_along_axis(each, order, axis=1) for each in (distances, rows, ids)]
        missing = [(0, 0), (0, k - order.shape[1])]
        return (
            np.pad(picked[0], missing, constant_values=PAD_DISTANCE),
            np.pad(picked[1], missing, constant_values=PAD_ID),
            np.pad(picked[2], missing, constant_values=PAD_ID),
        )


def chained(path: Path, parts: list[Part], names: list[PartName]) -> Snapshot:
    """Return the snapshot that ``parts``, lowest first, make; ``path`` is the highest one's file.

    Raises:
        InputError: the parts do not fit each other: code space, keys, removed rows, an id twice.
    """
    wrong = f"{path} cannot be used as a gallery:"
    has_keys = any(part.keys is not None for part in parts)
    live: list[Mask | None] = []
    starts = [0]
    for place, part in enumerate(parts):
        if (part.bits, part.fingerprint) != (parts[0].bits, parts[0].fingerprint):
            raise InputError(f"{wrong} its parts are of different models")
        if part.count and (part.keys is not None) != has_keys:
            raise InputError(f"{wrong} some of its parts have keys and some have none")
        if part.removed.size and part.removed[-1] >= starts[-1]:
            raise InputError(f"{wrong} it removes rows that it does not have")
        for index, rows in _split(part.removed, starts):
            mask = live[index]
            if mask is None:
                mask = live[index] = np.ones(parts[index].count, np.bool_)
            if not mask[rows].all():
                raise InputError(f"{wrong} it removes a row twice")
            mask[rows] = False
        if place and part.next_id < parts[place - 1].next_id:
            raise InputError(f"{wrong} it gives {part.next_id} as its next id, a part below {parts[place - 1].next_id}")
        ids = part.ids_of(np.arange(part.count)) if place else np.empty(0, np.int64)
        for below, mask in zip(parts, live, strict=False):
            taken = below.rows_of(ids)
            taken = taken[taken != PAD_ID]
            if taken.size and (mask is None or mask[taken].any()):
                raise InputError(f"{wrong} some of its parts have the same id")
        live.append(None)
        starts.append(starts[-1] + part.count)
    return Snapshot(names[-1].version, path, tuple(parts), tuple(names), tuple(live))


def _split(rows: Ids, starts: list[int]) -> Iterator[tuple[int, Ids]]:
    """Yield the index of each part that ascending ``rows`` touch, with the rows counted within it."""
    edges = np.searchsorted(rows, starts)
    for index, (first, end) in enumerate(pairwise(edges)):
        if end > first:
            yield index, rows[first:end] - starts[index]


def distinct_codes(codes: Codes) -> int:
    """Return how many different codes there are in (N, B) uint8; learned codes cluster."""
    if len(codes) == 0:
        return 0
    return len(np.unique(np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1])))))
