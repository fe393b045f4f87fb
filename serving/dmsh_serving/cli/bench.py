"""``dmsh-serve bench``: this machine's exact search, side by side with what else could do it."""

import functools
import importlib
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import CheckError
from dmsh_serving.timing import in_turns

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Codes = npt.NDArray[np.uint8]

OURS: Final = "dmsh"
NUMPY_MAX_COMPARISONS: Final = 1 << 23  # beyond, one would wait for numpy alone
WARM_UP_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Case:
    """One thing to measure: ``queries`` queries of ``bits`` bits against ``codes`` codes, k results each."""

    bits: int
    codes: int
    queries: int
    k: int


@dataclass(frozen=True)
class Timing:
    """Median over the rounds of one engine on one case, and how many times our time that is."""

    engine: str
    milliseconds: float
    ratio: float


def bench(
    bits: Annotated[list[int] | None, typer.Option(help="Bits per code; may be repeated.  [default: 64]")] = None,
    codes: Annotated[int, typer.Option(min=1, help="Codes in the gallery.")] = 1_000_000,
    queries: Annotated[
        list[int] | None, typer.Option(min=1, help="Queries at once; may be repeated.  [default: 1, 64]")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("-k", "--k", help="Results per query; may be repeated.  [default: 10, 100]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per engine.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each of them the engines take turns.")] = 11,
    json: JsonOption = None,
) -> None:
    """Time exact search on random codes.

    Beside it: a pass that computes distances alone, numpy, and faiss if it is installed.
    """
    from dmsh_serving.checks import checked_k
    from dmsh_serving.codes import checked_bits

    cases = [
        Case(checked_bits(width), codes, count, checked_k(results))
        for width in bits or [64]
        for count in queries or [1, 64]
        for results in k or [10, 100]
    ]
    results = {}
    with progress() as display:
        task = display.add_task("measuring", total=len(cases))
        for case in cases:
            results[case] = measure(case, threads, rounds)
            display.advance(task)
    _report(results, threads, rounds, json)


def measure(case: Case, threads: int, rounds: int) -> list[Timing]:
    """Time every engine on ``case``, in turns, so that a busy moment hits all of them; ours comes first.

    Raises:
        CheckError: an exact engine found other distances than ours.
    """
    import numpy as np

    from dmsh_serving.codes import uniform_codes

    codes, queries = uniform_codes(case.codes, case.bits, seed=0), uniform_codes(case.queries, case.bits, seed=1)
    engines = _engines(case, queries, codes, threads)
    expected = engines[OURS]()
    for name, engine in engines.items():
        found = engine()
        if found is not None and expected is not None and not np.array_equal(found, expected):
            raise CheckError(f"{name} and {OURS} disagree on {case}: one of them is wrong")
    seconds = in_turns(list(engines.values()), rounds, warm_seconds=WARM_UP_SECONDS)
    medians = {name: 1e3 * statistics.median(spent) for name, spent in zip(engines, seconds, strict=True)}
    return [Timing(name, median, median / medians[OURS]) for name, median in medians.items()]


Engine = Callable[[], "npt.NDArray[np.int32] | None"]


def _engines(case: Case, queries: "Codes", codes: "Codes", threads: int) -> dict[str, Engine]:
    """Return, by name, calls that give the distances (Q, k), or None from one that selects nothing."""
    import numpy as np

    from dmsh_serving.hamming import search
    from dmsh_serving.hamming.bare_pass import BarePass

    engines: dict[str, Engine] = {OURS: lambda: search(queries, codes, case.k, threads=threads)[0]}
    if codes.shape[1].bit_count() == 1:  # other widths are spread on the way
        engines["bare pass"] = BarePass(queries, codes, threads=threads)
    small = case.codes * case.queries <= NUMPY_MAX_COMPARISONS and case.k <= case.codes
    if small and hasattr(np, "bitwise_count"):  # numpy 2
        engines["numpy"] = functools.partial(_numpy_search, queries, codes, case.k)
    if case.bits % 8 == 0 and case.k <= case.codes and importlib.util.find_spec("faiss"):
        engines["faiss"] = _faiss_search(queries, codes, case.k, threads)
    return engines


def _numpy_search(queries: "Codes", codes: "Codes", k: int) -> "npt.NDArray[np.int32]":
    """Select the way one would by hand: popcount of every pair, partition, sort the first k."""
    import numpy as np

    found = np.empty((len(queries), k), np.int32)
    for index, query in enumerate(queries):
        distances = np.bitwise_count(query ^ codes).sum(axis=1, dtype=np.int32)
        found[index] = np.sort(np.partition(distances, k - 1)[:k])
    return found


def _faiss_search(queries: "Codes", codes: "Codes", k: int, threads: int) -> Engine:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    return lambda: index.search(queries, k)[0]


def _report(results: dict[Case, list[Timing]], threads: int, rounds: int, json: Path | None) -> None:
    rows = []
    for case, timings in results.items():
        for timing in timings:
            what = [str(case.bits), f"{case.queries:,}", str(case.k)] if timing.engine == OURS else ["", "", ""]
            comparisons = case.codes * case.queries / timing.milliseconds / 1e6
            rows.append(
                [*what, timing.engine, f"{timing.milliseconds:.3f}", f"{comparisons:.2f}", f"{timing.ratio:.2f}"]
            )
    count = next(iter(results)).codes
    columns = ["bits", "queries", "k", "engine", "median ms", "10^9 codes/s", "x our time"]
    print_table(f"{count:,} random codes, {threads} thread(s), median of {rounds} rounds", columns, rows)
    measured = [{timing.engine for timing in timings} for timings in results.values()]
    if any(len(engines) < max(map(len, measured)) for engines in measured):
        console().print("numpy and faiss are left out where k exceeds the codes, faiss where bits are no whole bytes,")
        console().print(f"numpy where there are over {NUMPY_MAX_COMPARISONS:,} distances")
    if not importlib.util.find_spec("faiss"):
        console().print("faiss is not installed, so it was not measured (pip install faiss-cpu)")
    found: list[dict[str, Any]] = [
        asdict(case) | {"timings": [asdict(timing) for timing in timings]} for case, timings in results.items()
    ]
    write_json(json, {"threads": threads, "rounds": rounds, "cases": found})
