"""One version of a gallery, in memory: what it holds, and search in it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import PAD_ID, PAD_KEY
from dmsh_serving.hamming import search
from dmsh_serving.snapshot_file import SnapshotContent

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SearchResult:
    """The answer of one snapshot to Q queries, ordered by (distance, id).

    Attributes:
        ids: (Q, k) int64, ``contract.PAD_ID`` beyond the gallery's size.
        distances: (Q, k) int32, ``contract.PAD_DISTANCE`` beyond it.
        rows: (Q, k) int64 rows of the snapshot, for :meth:`Snapshot.keys_of`; ``PAD_ID`` beyond it.
    """

    ids: Ids
    distances: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """One version of a gallery, mapped read-only and already checked."""

    version: str
    path: Path
    content: SnapshotContent

    @property
    def bits(self) -> int:
        """Bits a code."""
        return self.content.bits

    @property
    def fingerprint(self) -> str:
        """The code space: the fingerprint of the model that made the codes."""
        return self.content.fingerprint

    @property
    def codes(self) -> Codes:
        """(N, ceil(bits/8)) uint8, read-only."""
        return self.content.codes

    @property
    def ids(self) -> Ids:
        """(N,) int64, strictly ascending, read-only."""
        return self.content.ids

    @property
    def count(self) -> int:
        """The number of codes."""
        return len(self.content.ids)

    @property
    def has_keys(self) -> bool:
        """Whether each code carries a key (a name given by the user)."""
        return self.content.keys is not None

    def keys_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the keys of ``rows``, flattened; ``contract.PAD_KEY`` for padding or a gallery without keys."""
        offsets, blob = self.content.key_offsets, self.content.keys
        if offsets is None or blob is None:
            return [PAD_KEY] * rows.size
        return [
            PAD_KEY if row == PAD_ID else blob[offsets[row] : offsets[row + 1]].tobytes().decode()
            for row in rows.reshape(-1).tolist()
        ]

    def search(self, queries: Codes, k: int, *, threads: int | None = None) -> SearchResult:
        """Return the k nearest codes of each query (Q, B) uint8; see :func:`dmsh_serving.hamming.search`."""
        check_codes(queries, self.bits)
        distances, rows = search(queries, self.codes, k, threads=threads)
        ids = np.full(rows.shape, PAD_ID, np.int64)
        found = rows != PAD_ID
        ids[found] = self.ids[rows[found]]
        return SearchResult(ids, distances, rows)


def distinct_codes(codes: Codes) -> int:
    """Return how many different codes there are in (N, B) uint8; learned codes cluster."""
    if len(codes) == 0:
        return 0
    return len(np.unique(np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1])))))
