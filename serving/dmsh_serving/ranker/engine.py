"""What every engine of the ranker offers: exact search in one version of a gallery.

There are two: :class:`dmsh_serving.gallery.snapshot.Snapshot`, a folder on this machine, and
:class:`dmsh_serving.clickhouse.search.RemoteVersion`. :mod:`dmsh_serving.ranker.places`
opens them: a new one goes there.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Codes
from dmsh_serving.gallery.snapshot import SearchResult

__all__ = ["Engine"]


class Engine(Protocol):
    """One opened version of a gallery, whatever holds it, ready to be searched.

    :class:`dmsh_serving.gallery.Snapshot` says what each does; a row means what :meth:`search` says it does.
    """

    @property
    def version(self) -> str:
        """The name of the version."""

    @property
    def count(self) -> int:
        """The number of codes."""

    def search(
        self,
        queries: Codes,
        k: int,
        *,
        radius: int | None = None,
        allowed: npt.NDArray[np.int64] | None = None,
        threads: int | None = None,
    ) -> SearchResult:
        """Return the k nearest codes of each query."""

    def codes_of(self, rows: npt.NDArray[np.int64]) -> Codes:
        """Return the codes of ``rows``."""

    def keys_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the keys of ``rows``, flattened."""
