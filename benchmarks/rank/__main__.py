"""How fast is exact Hamming search here? Ours, FAISS, usearch and numpy, in turns; uniform and learned codes.

    python -m benchmarks.rank [--quick] [--learned 10000000] [--huge]

All engines get the same codes and the same number of threads; FAISS runs in every setting that might be its best. Their
distances are compared before anything is timed.
"""

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from benchmarks.rank.results import RankBench
from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import InputError
from dmsh_serving.program import run

if TYPE_CHECKING:
    from benchmarks.rank.engines import Case
    from benchmarks.rank.timing import Measured

app = make_app("Time exact Hamming search against FAISS, usearch and numpy.")

__all__ = ["app", "cases", "measured", "rank"]

_ROOT: Final = Path(__file__).parents[2]
_NAME: Final = "rank"  # in the markers of the page
_PACKAGES: Final = ("numba", "numpy", "faiss-cpu", "usearch")
_UNIFORM_GALLERY: Final = 10_000_000
_ASKED: Final = 200  # this many learned codes are queries; they are not in the gallery


@app.command()
def rank(
    quick: Annotated[bool, typer.Option("--quick", help="Small galleries, few cases and rounds.")] = False,
    learned: Annotated[
        int, typer.Option(min=1000, help="Images to encode for learned codes, kept in build/rank. --quick ignores it.")
    ] = 1_500_000,
    huge: Annotated[bool, typer.Option("--huge", help="Add 10^8 codes of 64 bits (1.7 GB with FAISS's copy).")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed turns per engine. [default: 15, with --quick 3]")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the tables to this page, between its markers.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plots to this folder.")] = None,
    json: JsonOption = None,
) -> None:
    """Time exact Hamming search side by side; without --quick, write docs/ranking.md and its plots too."""
    from benchmarks.common.page import around, replace
    from benchmarks.rank.page import markdown, plot

    started = time.monotonic()
    if not quick:
        page, out = page or _ROOT / "docs" / "ranking.md", out or _ROOT / "docs" / "img"
    if page is not None:
        around(page, _NAME)  # so that a wrong page is refused now, not after minutes of measuring
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder for the plots")
    bench = measured(quick, learned, huge, rounds or (3 if quick else 15))
    _print(bench)
    if page is not None:
        replace(page, _NAME, markdown(bench))
    if out is not None:
        for drawn in plot(out, bench):
            console().print(f"drew {drawn}")
    write_json(json, bench.to_dict())
    console().print(f"took {time.monotonic() - started:.0f} s")


def cases(quick: bool, huge: bool) -> "list[Case]":
    """Return the cases to time."""
    from benchmarks.rank.engines import Case

    if quick:
        small = [Case(64, codes, 1, 100, 1) for codes in (10_000, 30_000)]
        return [*small, Case(64, 30_000, 1, 100, 2), Case(48, 20_000, 1, 10, 1), Case(16, 20_000, 8, 10, 1)]
    million = 1_000_000
    wanted = [Case(64, million, 1, k, threads) for threads in (1, 2) for k in (10, 100, 1000)]
    wanted += [Case(64, codes, 1, 100, 1) for codes in (10_000, 100_000, 10 * million)]
    wanted += [Case(bits, million, 1, 10, 1) for bits in (12, 16, 32, 48, 100, 128, 256)]
    wanted += [Case(bits, 100_000, 1, 10, 1) for bits in (128, 256)]
    wanted += [Case(64, million, 128, k, 1) for k in (10, 100, 1000)] + [Case(64, million, 128, 100, 2)]
    wanted += [Case(bits, million, 128, 10, 1) for bits in (16, 32, 100, 128, 256)]
    if huge:
        wanted += [Case(64, 100 * million, 1, 100, threads) for threads in (1, 2)]
    return wanted


def measured(quick: bool, learned: int, huge: bool, rounds: int) -> RankBench:
    """Measure everything, one case after the other."""
    from benchmarks.rank.codes import learned_codes
    from benchmarks.rank.layouts import demo_logits, measure_layouts, rerank_effect
    from benchmarks.rank.timing import measure
    from dmsh_export.compare.machine import machine_name
    from dmsh_serving.codes import pack, uniform_codes

    load = os.getloadavg()[0]
    timed: list[Measured] = []
    with progress() as bar:
        task = bar.add_task("encoding images", total=None)
        logits = demo_logits()
        if quick:  # the codes of the images that are encoded anyway
            codes = pack(logits)
        else:
            codes = learned_codes(
                learned,
                _ROOT / "build" / "rank",
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        gallery, queries = codes[:-_ASKED], codes[-_ASKED:]
        planned = cases(quick, huge)
        bar.update(task, total=len(planned) + 1, completed=0)
        for case in planned:
            what = f"{case.bits} bits, {case.codes:,} codes, {case.queries} queries, k {case.k}"
            bar.update(task, description=what)
            timed.append(measure(case, rounds))
            bar.advance(task)
        bar.update(task, description="layouts")
        sizes = sorted({size for size in (100_000, 1_000_000, len(gallery)) if size <= len(gallery)})
        layouts = [
            one
            for size in sizes
            for one in measure_layouts("learned", gallery[:size], queries, (10, 100, 1000), rounds)
        ]
        uniform = uniform_codes(50_000 if quick else _UNIFORM_GALLERY, 64, seed=0)
        layouts += measure_layouts("uniform", uniform, uniform_codes(20, 64, seed=1), (100,), min(rounds, 3))
        rerank = rerank_effect(logits, (10, 100, 1000, 0))
    versions = {package: version(package) for package in _PACKAGES}
    return RankBench(machine_name(), versions, load, rounds, tuple(timed), tuple(layouts), tuple(rerank))


def _print(bench: RankBench) -> None:
    from benchmarks.rank.engines import BARE, FAISS, OURS

    rows = []
    for one in bench.measured:
        case, bare, faiss = one.case, one.times_ours(BARE), one.times_ours(FAISS)
        rows.append(
            [
                *(str(case.bits), f"{case.codes:,}", str(case.queries), str(case.k), str(case.threads)),
                *(f"{one.milliseconds(OURS):.3f}", f"{one.gigabytes_per_s:.1f}"),
                *("" if bare is None else f"{1 / bare:.2f}", "" if faiss is None else f"{faiss:.1f}"),
            ]
        )
    columns = ["bits", "codes", "queries", "k", "threads", "ms", "GB/s", "/ bare pass", "FAISS / ours"]
    print_table(f"Median of {bench.rounds} rounds", columns, rows)
    print_table(
        "Layouts",
        ["codes", "gallery", "different", "k", "plain ms", "clustered ms", "faster", "chosen"],
        [
            [t.kind, f"{t.codes:,}", f"{t.distinct:,}", str(t.k), f"{t.plain_milliseconds:.4f}",
             f"{t.clustered_milliseconds:.4f}", f"{t.gain:.1f}", t.chosen]
            for t in bench.layouts
        ],
    )  # fmt: skip
    print_table(
        "mAP with and without re-ranking",
        ["ranks", "Hamming", "asymmetric"],
        [[str(e.k or "all"), f"{e.hamming:.5f}", f"{e.asymmetric:.5f}"] for e in bench.rerank],
    )


if __name__ == "__main__":
    run(app)
