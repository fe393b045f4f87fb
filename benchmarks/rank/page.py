"""The ranking figures as Markdown tables and as plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rank.engines import ALONE, BARE, BARE_ALONE, FAISS, NUMPY, OURS, READ, USEARCH
from benchmarks.rank.layouts import CLUSTERED, LayoutTiming
from benchmarks.rank.timing import Measured

if TYPE_CHECKING:
    from benchmarks.rank.results import RankBench

__all__ = ["markdown", "plot"]

_OURS_COLOUR, _FAISS_COLOUR, _BARE_COLOUR = "#2c7a4b", "#c98f5a", "#7d9ec0"


def markdown(bench: "RankBench") -> str:
    """Return the tables: engines, several threads, layouts, re-ranking."""
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    parts = [f"{bench.machine}; {versions}; load average {bench.load_average:.1f} when it began."]
    parts.append(_engine_table(bench.measured))
    several = [one for one in bench.measured if one.case.threads > 1]
    if several:
        lines = [
            "| bits | codes | queries | k | threads | one thread, ms | these, ms | faster | a bare pass gains |",
            "|---:|" + "---:|" * 8,
        ]
        for one in several:
            alone, ours = one.milliseconds(ALONE) or 0, one.milliseconds(OURS) or 1
            bare = (one.milliseconds(BARE_ALONE) or 0) / (one.milliseconds(BARE) or 1)
            lines.append(
                f"| {_case(one)} | {one.case.threads} | {alone:.3f} | {ours:.3f} | {alone / ours:.2f}x | {bare:.2f}x |"
            )
        parts.append("**Ours, several threads against one**\n\n" + "\n".join(lines))
    lines = [
        "| codes | gallery | different codes | k | plain, ms | clustered, ms | faster | layout chosen |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {t.kind} | {t.codes:,} | {t.distinct:,} | {t.k} | {t.plain_milliseconds:.3f} | "
        f"{t.clustered_milliseconds:.3f} | {t.gain:.1f}x | {t.chosen} |"
        for t in bench.layouts
    ]
    parts.append("**Layouts, 64 bits, lone queries that are not in the gallery, one thread**\n\n" + "\n".join(lines))
    lines = ["| ranks | Hamming order | re-ranked | difference |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {effect.k or 'all'} | {effect.hamming:.5f} | {effect.asymmetric:.5f} | "
        f"{effect.asymmetric - effect.hamming:+.5f} |"
        for effect in bench.rerank
    ]
    parts.append('**mAP of the demo model on MNIST-5k with `rerank="asymmetric"`**\n\n' + "\n".join(lines))
    return "\n\n".join(parts)


def _engine_table(measured: Sequence[Measured]) -> str:
    lines = [
        "| bits | codes | queries | k | threads | ours, ms | GB/s | / bare pass | / read | FAISS, ms | FAISS / ours | "
        "usearch / ours | numpy / ours |",
        "|---:|" + "---:|" * 12,
    ]
    for one in measured:
        bare, read = one.times_ours(BARE), one.times_ours(READ)
        cells = [
            f"{one.milliseconds(OURS):.3f}",
            f"{one.gigabytes_per_s:.1f}",
            "" if bare is None else f"{1 / bare:.2f}",
            "" if read is None else f"{1 / read:.2f}",
            "" if one.milliseconds(FAISS) is None else f"{one.milliseconds(FAISS):.3f}",
            "" if one.times_ours(FAISS) is None else f"**{one.times_ours(FAISS):.1f}x**",
            *("" if one.times_ours(name) is None else f"{one.times_ours(name):,.0f}x" for name in (USEARCH, NUMPY)),
        ]
        lines.append(f"| {_case(one)} | {one.case.threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _case(one: Measured) -> str:
    case = one.case
    return f"{case.bits} | {case.codes:,} | {case.queries} | {case.k}"


def plot(folder: Path, bench: "RankBench") -> list[Path]:
    """Draw how many times faster than FAISS each case is, time against gallery size, and the layouts."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _saved(folder / "rank-faiss.png", _plot_ratios(bench.measured)),
        _saved(folder / "rank-size.png", _plot_sizes(bench.measured)),
        _saved(folder / "rank-layouts.png", _plot_layouts(bench.layouts)),
    ]


def _saved(path: Path, figure: Any) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    # Without a date or version: the same figures give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    return figure, axes


def _plot_ratios(measured: Sequence[Measured]) -> Any:
    """Draw one bar per case on one thread; lone queries and batches differ in colour."""
    shown = [one for one in measured if one.case.threads == 1 and one.times_ours(FAISS) is not None]
    figure, axes = _axes(7.5, 0.24 * len(shown) + 0.9)
    names = [f"{m.case.bits} bits, {m.case.codes:,} codes, {m.case.queries} x k={m.case.k}" for m in shown][::-1]
    ratios = [m.times_ours(FAISS) or 0 for m in shown][::-1]
    colours = [_OURS_COLOUR if m.case.queries == 1 else _BARE_COLOUR for m in shown][::-1]
    bars = axes.barh(range(len(shown)), ratios, color=colours)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.bar_label(bars, [f" {ratio:.1f}x" for ratio in ratios], fontsize=8)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlim(0, 1.12 * max(ratios, default=1))
    axes.set_xlabel("times faster than FAISS in its best setting, one thread (green: a lone query)", fontsize=9)
    return figure


def _plot_sizes(measured: Sequence[Measured]) -> Any:
    """Draw the milliseconds of a lone query of 64 bits, k = 100, against the size of the gallery."""
    shown = sorted(
        (m for m in measured if (m.case.bits, m.case.queries, m.case.k, m.case.threads) == (64, 1, 100, 1)),
        key=lambda m: m.case.codes,
    )
    figure, axes = _axes(5.5, 3.6)
    for engine, colour in ((FAISS, _FAISS_COLOUR), (OURS, _OURS_COLOUR), (BARE, _BARE_COLOUR)):
        points = [(m.case.codes, m.milliseconds(engine)) for m in shown if m.milliseconds(engine) is not None]
        style = "--" if engine == BARE else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colour, label=engine)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("codes of 64 bits", fontsize=9)
    axes.set_ylabel("ms per query, k = 100, one thread", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _plot_layouts(layouts: Sequence[LayoutTiming]) -> Any:
    """Draw the milliseconds of a lone query, k = 100, against the number of learned codes, for both layouts."""
    shown = sorted((t for t in layouts if t.kind == "learned" and t.k == 100), key=lambda t: t.codes)
    figure, axes = _axes(5.5, 3.6)
    sizes = [t.codes for t in shown]
    axes.plot(sizes, [t.plain_milliseconds for t in shown], marker="o", color=_BARE_COLOUR, label="plain scan")
    axes.plot(sizes, [t.clustered_milliseconds for t in shown], marker="o", color=_OURS_COLOUR, label=CLUSTERED)
    for t in shown:
        axes.annotate(
            f"{t.distinct:,} different", (t.codes, t.clustered_milliseconds), (0, -12), textcoords="offset points",
            fontsize=7, ha="center",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.15, y=0.2)
    axes.set_xlabel("learned codes of 64 bits", fontsize=9)
    axes.set_ylabel("ms per query, k = 100, one thread", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure
