"""One file of a gallery's version: codes with ids and keys, and which codes of the files below it are gone.

A version is a chain of parts; each names the part below it. An append or a removal writes a new part on top, as large
as the change. The files of the parts below stay unchanged.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import PAD_ID
from dmsh_serving.errors import InputError
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.hamming import search
from dmsh_serving.hamming.clustered import MAX_PLACES, ClusteredCodes
from dmsh_serving.hamming.sorting import ascends, ascends_within, codes_ascend

__all__ = ["CLUSTERED", "Ids", "Mask", "Part", "PartName", "Stored", "ascending_ids", "check_ids", "no_rows"]

Ids = npt.NDArray[np.int64]
Stored = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MANY: Final = 1 / 64  # of the codes: looking up more ids than these is worth a table

PLAIN = "plain"
CLUSTERED = "clustered"


def no_rows() -> Ids:
    """Return the empty list of rows."""
    return np.empty(0, np.int64)


def check_ids(ids: npt.NDArray[np.integer]) -> None:
    """Raise :class:`InputError` unless ``ids`` are integers (M,): of a mask, the values would be the ids 0 and 1."""
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise InputError(f"ids must be integers [M], got {ids.dtype} {list(ids.shape)}")


def ascending_ids(ids: npt.NDArray[np.integer]) -> Ids:
    """Return ``ids`` (M,) as int64, ascending, each once.

    ``numpy.unique`` hashes whole numbers since 2.3, and evenly spaced ones collide: a million took 2 seconds.

    Raises:
        InputError: see :func:`check_ids`.
    """
    check_ids(ids)
    if (ids[1:] > ids[:-1]).all():
        return ids.astype(np.int64, copy=False)
    ascending = np.sort(ids).astype(np.int64, copy=False)
    first = np.ones(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return ascending[first]


@dataclass(frozen=True)
class PartName:
    """Names one part for good: its version, and the SHA-256 (hex) of its content."""

    version: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """N codes in one of two layouts, their ids and keys in row order.

    In the plain layout row i is ``codes[i]`` and the ids ascend. In the clustered layout (``starts`` is given) equal
    codes are stored once, and a row is a place of :class:`dmsh_serving.hamming.clustered.ClusteredCodes`.

    Attributes:
        bits: bits per code.
        fingerprint: names the model that made the codes.
        codes: (N, ceil(bits/8)) uint8; in the clustered layout (U, ceil(bits/8)), each different code once.
        ids: (N,) int64, or int32 if all fit; None if they are ``first_id`` to ``first_id`` + N - 1.
        first_id: the first id of such a range.
        starts: (U + 1,) int32, first row of each different code, and N; None in the plain layout.
        keys: N strings, or None in a gallery without keys.
        removed: (R,) int64, ascending: rows that this part takes away from the parts below it, counted through all of
            them from the lowest.
        base: the part below, or None.
        next_id: larger than every id that the gallery has given out so far, those of removed codes included.
        layout_reason: why the codes have this layout.
        distinct: number of different codes; None if they were not counted.
    """

    bits: int
    fingerprint: str
    codes: Codes
    ids: Stored | None = None
    first_id: int = 0
    starts: npt.NDArray[np.int32] | None = None
    keys: Keys | None = None
    removed: Ids = field(default_factory=no_rows)
    base: PartName | None = None
    next_id: int = 0
    layout_reason: str = ""
    distinct: int | None = None

    @property
    def count(self) -> int:
        """The number of codes, including those that a part above has removed."""
        return len(self.codes) if self.ids is None else len(self.ids)

    @property
    def last_id(self) -> int:
        """The largest id; -1 if there are no codes."""
        if self.ids is not None:
            return self._id_range[1]
        return self.first_id + self.count - 1 if self.count else -1

    @property
    def weight(self) -> int:
        """The rows to write for this part; at least 1, so that empty parts do not pile up."""
        return max(1, self.count + self.removed.size)

    @property
    def layout(self) -> str:
        """``plain`` or ``clustered``."""
        return PLAIN if self.starts is None else CLUSTERED

    def ids_of(self, rows: Ids) -> Ids:
        """Return the ids (int64) of ``rows``, which may have any shape."""
        return rows + self.first_id if self.ids is None else self.ids[rows].astype(np.int64, copy=False)

    def codes_of(self, rows: Ids) -> Codes:
        """Return the codes of ``rows`` (M,) as (M, B) uint8."""
        if self.starts is not None:
            # NumPy would copy all starts to a wider type of rows.
            rows = np.searchsorted(self.starts, rows.astype(self.starts.dtype, copy=False), side="right") - 1
        return self.codes[rows]

    def rows_of(self, ids: Ids) -> Ids:
        """Return the row of each of ``ids`` (M,) int64, ``contract.PAD_ID`` for an id that this part does not have."""
        if self.ids is None:
            rows = ids - self.first_id
            return np.where((ids >= self.first_id) & (rows < self.count), rows, PAD_ID)
        rows = np.full(ids.shape, PAD_ID, np.int64)
        lowest, highest = self._id_range
        possible = np.flatnonzero((ids >= lowest) & (ids <= highest))
        if not possible.size:
            return rows
        if (self.starts is not None or possible.size > _MANY * self.count) and self._row_of_id is not None:
            rows[possible] = self._row_of_id[ids[possible] - lowest]
            return rows
        order, wanted = self._order_of_ids, ids[possible].astype(self.ids.dtype, copy=False)
        places = np.searchsorted(self.ids, wanted, sorter=order)
        candidates = places if order is None else order[places]
        rows[possible] = np.where(self.ids[candidates] == wanted, candidates, PAD_ID)
        return rows

    def mask_of(self, ids: Ids) -> Mask:
        """Return (rows,) bool, the rows that have one of ``ids`` (M,) int64, which may repeat."""
        mask = np.zeros(self.count, np.bool_)
        if self.ids is not None and ids.size > _MANY * self.count and self._row_of_id is None:
            ids = np.sort(ids)  # searched in order, most of what a search reads is in the caches: four times as fast
        rows = self.rows_of(ids)
        mask[rows[rows != PAD_ID]] = True
        return mask

    def search(
        self, queries: Codes, k: int, *, threads: int | None, allowed: Mask | None
    ) -> tuple[npt.NDArray[np.int32], Ids]:
        """Return distances (Q, k) and rows (Q, k) in (distance, id) order; see :func:`dmsh_serving.hamming.search`."""
        if self._clusters is not None:
            return self._clusters.search(queries, k, threads=threads, allowed=allowed)
        return search(queries, self.codes, k, threads=threads, allowed=allowed)

    def check(self, where: str) -> None:
        """Raise :class:`InputError`, beginning with ``where``, unless all of it fits together."""
        check_codes(self.codes, self.bits)
        if self.starts is not None:
            self._check_clusters(self.starts, where)
        if self.ids is not None:
            self._check_ids(self.ids, where)
        elif not 0 <= self.first_id <= 2**63 - max(1, self.count):
            raise InputError(f"{where}: {self.count} ids from {self.first_id} on are not all from 0 to 2^63 - 1")
        if not self.last_id < self.next_id <= 2**63:
            raise InputError(f"{where}: it gives {self.next_id} as its next id, and has id {self.last_id}")
        if self.keys is not None:
            self.keys.check(self.count, where)
        gone = self.removed
        if gone.ndim != 1 or (gone.size and (gone[0] < 0 or not (gone[1:] > gone[:-1]).all())):
            raise InputError(f"{where}: its list of removed rows is not strictly ascending from 0 on")
        if gone.size and self.base is None:
            raise InputError(f"{where}: it removes {gone.size} rows of a part below, and there is none")

    def _check_ids(self, ids: Stored, where: str) -> None:
        if self.starts is None and ids.shape != (len(self.codes),):
            raise InputError(f"{where}: {len(self.codes)} codes but ids of shape {list(ids.shape)}")
        if ids.size and ids.min() < 0:
            raise InputError(f"{where}: id {ids.min()} is negative; ids are 0 or more")
        if not (ascends(ids) if self.starts is None else ascends_within(self.starts, ids)):
            raise InputError(f"{where}: ids are not strictly ascending")

    def _check_clusters(self, starts: npt.NDArray[np.int32], where: str) -> None:
        if self.ids is None or self.ids.ndim != 1 or starts.shape != (len(self.codes) + 1,):
            raise InputError(
                f"{where}: {len(self.codes)} different codes do not fit starts of shape {list(starts.shape)}"
            )
        if starts[0] != 0 or starts[-1] != len(self.ids) or not ascends(starts):
            raise InputError(f"{where}: the starts of the codes do not divide {len(self.ids)} ids")
        if len(self.ids) > MAX_PLACES:
            raise InputError(f"{where}: {len(self.ids)} codes are more than a clustered part can have, {MAX_PLACES}")
        if not codes_ascend(self.codes):
            raise InputError(f"{where}: its {len(self.codes)} different codes are not in ascending order")

    @cached_property
    def _clusters(self) -> ClusteredCodes | None:
        if self.starts is None or self.ids is None:
            return None
        return ClusteredCodes(self.codes, self.starts, self.ids)

    @cached_property
    def _id_range(self) -> tuple[int, int]:
        """The lowest and the highest id; (0, -1) if there are no codes."""
        if self.ids is None or not self.ids.size:
            return (0, -1)
        return int(self.ids.min()), int(self.ids.max())

    @cached_property
    def _row_of_id(self) -> npt.NDArray[np.integer] | None:
        """The row of every id from the lowest on, -1 for ids that are not there; None if the ids lie too far apart.

        Made when first asked for. It takes 4 to 8 bytes per code, as much as codes of 32 to 64 bits.
        """
        lowest, highest = self._id_range
        if self.ids is None or highest - lowest >= 2 * self.count:
            return None
        kind = np.dtype(np.int32 if self.count < 2**31 else np.int64)
        table: npt.NDArray[np.integer] = np.full(highest - lowest + 1, PAD_ID, kind)
        table[self.ids - lowest] = np.arange(self.count, dtype=kind)
        return table

    @cached_property
    def _order_of_ids(self) -> Ids | None:
        """The rows in ascending order of ids; None if they have this order already. Made when first asked for."""
        return None if self.starts is None or self.ids is None else np.argsort(self.ids)
