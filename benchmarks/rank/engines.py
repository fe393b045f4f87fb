"""Every engine that is timed, as a call that returns the distances (Q, k) that it found."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.rank.codes import Codes
from dmsh_serving.codes import uniform_codes
from dmsh_serving.hamming import search
from dmsh_serving.hamming.bare_pass import BarePass
from dmsh_serving.hamming.inputs import padded_queries

__all__ = [
    "ALONE",
    "BARE",
    "BARE_ALONE",
    "FAISS",
    "NUMPY",
    "OURS",
    "READ",
    "USEARCH",
    "Case",
    "Engine",
    "engines",
]

Engine = Callable[[], "npt.NDArray[np.int32] | None"]

OURS: Final = "dmsh"
ALONE: Final = "one thread of dmsh"
BARE: Final = "bare pass"
BARE_ALONE: Final = "one thread of a bare pass"
READ: Final = "read"
FAISS: Final = "FAISS"
USEARCH: Final = "usearch"
NUMPY: Final = "numpy"
_SLOW_COMPARISONS: Final = 1 << 22  # more take numpy and usearch too long
_FAISS_BATCH_SIZES: Final = (32, 128)


@dataclass(frozen=True)
class Case:
    """One search to time: its bits per code, number of uniform codes, queries at once, k and threads."""

    bits: int
    codes: int
    queries: int
    k: int
    threads: int

    def made(self) -> tuple[Codes, Codes]:
        """Return the queries (Q, B) and the codes (N, B) uint8, the same every time."""
        return uniform_codes(self.queries, self.bits, seed=1), uniform_codes(self.codes, self.bits, seed=0)


def engines(case: Case, queries: Codes, codes: Codes) -> dict[str, Engine]:
    """Return, by name, the engines that can run this case: ours first, FAISS in every setting that may be its best."""
    found: dict[str, Engine] = {OURS: lambda: search(queries, codes, case.k, threads=case.threads)[0]}
    power_of_two = codes.shape[1].bit_count() == 1  # a bare pass takes no other widths
    if power_of_two:
        found[BARE] = BarePass(queries, codes, threads=case.threads)
    if case.threads > 1:
        found[ALONE] = lambda: search(queries, codes, case.k, threads=1)[0]
    if case.threads > 1 and power_of_two:
        found[BARE_ALONE] = BarePass(queries, codes)
    if case.threads == 1 and case.queries == 1 and codes.shape[1] % 8 == 0:
        found[READ] = functools.partial(_read, codes)
    found |= _faiss(case, queries, codes)
    if case.codes * case.queries <= _SLOW_COMPARISONS:
        if importlib.util.find_spec("usearch"):
            found[USEARCH] = functools.partial(_usearch, queries, codes, case.k, case.threads)
        if case.threads == 1:
            found[NUMPY] = functools.partial(_numpy, queries, codes, case.k)
    return found


def _read(codes: Codes) -> None:
    """Read every word of the codes once, with next to no work: the speed that memory and caches allow."""
    np.bitwise_or.reduce(codes.reshape(-1).view(np.uint64))


def _faiss(case: Case, queries: Codes, codes: Codes) -> dict[str, Engine]:
    """Return FAISS with heaps or counting, with both query batches, and on wider codes.

    FAISS has fast paths for some widths. Codes of another width are also tried with zero bytes added up to the next of
    these; that changes no distance.
    """
    if not importlib.util.find_spec("faiss"):
        return {}
    import faiss

    made: dict[str, Engine] = {}
    width = codes.shape[1]
    fast = next(size for size in (4, 8, 16, 32, 64, 128) if size >= width)
    for columns in dict.fromkeys((width, fast)):
        index = faiss.IndexBinaryFlat(8 * columns)
        index.add(_widened(codes, columns))
        wide = _widened(queries, columns)
        padding = f", {8 * columns} bits" if columns != width else ""
        for use_heap in (True, False):
            for size in _FAISS_BATCH_SIZES if case.queries > 32 else _FAISS_BATCH_SIZES[:1]:
                batch = f", batch {size}" if case.queries > 32 else ""
                name = f"{FAISS} {'heap' if use_heap else 'counting'}{batch}{padding}"
                made[name] = functools.partial(_faiss_search, index, wide, case, use_heap, size)
    return made


def _widened(codes: Codes, columns: int) -> Codes:
    return codes if codes.shape[1] == columns else padded_queries(codes, columns)


def _faiss_search(
    index: Any, queries: Codes, case: Case, use_heap: bool, query_batch_size: int
) -> npt.NDArray[np.int32]:
    import faiss

    # FAISS cannot split a query: more threads would only get in the way.
    faiss.omp_set_num_threads(min(case.threads, case.queries))
    index.use_heap, index.query_batch_size = use_heap, query_batch_size
    return index.search(queries, case.k)[0]  # type: ignore[no-any-return]


def _usearch(queries: Codes, codes: Codes, k: int, threads: int) -> npt.NDArray[np.int32]:
    from usearch import index

    metric = index.MetricKind.Hamming  # type: ignore[attr-defined]
    found = index.search(codes, queries, k, metric, exact=True, threads=threads)
    return np.asarray(found.distances, np.float32).reshape(len(queries), k).astype(np.int32)


def _numpy(queries: Codes, codes: Codes, k: int) -> npt.NDArray[np.int32]:
    """Search as one would by hand: count the bits of every pair, partition, sort the first k."""
    found = np.empty((len(queries), k), np.int32)
    for index, query in enumerate(queries):
        distances = np.bitwise_count(query ^ codes).sum(axis=1, dtype=np.int32)
        found[index] = np.sort(np.partition(distances, k - 1)[:k])
    return found
