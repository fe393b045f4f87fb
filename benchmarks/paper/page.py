"""The experiment's figures as a page with tables, and as curves."""

import io
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.common import page as pages
from benchmarks.paper.configurations import REFERENCE, Configuration, Experiment
from benchmarks.paper.runs import refused_exports
from dmsh_serving.files import write_atomically

SECTION: Final = "scratch"  # of the page

Results = dict[str, dict[str, Any]]


def values_of(results: Results, data: str, configuration: str, bits: int) -> list[float]:
    """Return mAP@all in points of every seed, in the order of the seeds."""
    found = []
    for result in results.values():
        run = result["identity"]
        if (run["data"]["name"], run["configuration"]["name"], run["bits"]) == (data, configuration, bits):
            found.append((run["seed"], 100 * result["retrieval"]["map_all"]))
    return [value for _, value in sorted(found)]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.2f} ± {deviation:.2f}"


def markdown(experiment: Experiment, results: Results, machine: str) -> str:
    """Return the section: protocol, then mAP and what fusion gains for each data set."""
    compared = sum(result["parity"]["bits_compared"] for result in results.values())
    refused = refused_exports(results)
    hours = sum(result["seconds"] for result in results.values()) / 3600
    head = "| configuration | " + " | ".join(f"{bits} bits" for bits in experiment.bits) + " |"
    line = "|---|" + "---:|" * len(experiment.bits)
    epochs = ", ".join(sorted({str(each.options.epochs) for each in experiment.configurations}))
    parts = [
        f"Made by `python -m benchmarks.paper`: {len(results)} trainings of {epochs} epochs, {len(experiment.seeds)} "
        f"seeds each, {hours:.1f} hours of one thread; {machine}. "
        "The seed draws the split, the weights and the order alike for "
        "every configuration. Every configuration is a file of `experiments/`; all have the same backbone, widths, "
        "augmentation and schedule, so one with fewer scales has a smaller fusion layer.",
        f"Each checkpoint was exported to ONNX and compared with PyTorch on its queries, {compared:,} bits in all: "
        + (f"**refused exports: {len(refused)}**: {'; '.join(refused)}." if refused else "0 wrong bits.")
        + _unfolded(results),
        "mAP@all is over held-out queries in the order (distance, database row), in points; mean and standard "
        "deviation over the seeds. See [evaluation](evaluation.md) for the definitions.",
    ]
    for data in experiment.data:
        first = next(result for result in results.values() if result["identity"]["data"]["name"] == data.name)
        sizes = first["retrieval"]
        parts += [
            f"### {data.name}",
            f"{sizes['queries']} queries, database of {sizes['database']}.",
            "\n".join(
                [
                    head,
                    line,
                    *(
                        _row(each, [values_of(results, data.name, each.name, b) for b in experiment.bits], "")
                        for each in experiment.configurations
                    ),
                ]
            ),
            "What the fusion of three scales gains over each, points, paired by seed:",
            "\n".join([head, line, *_gains(experiment, results, data.name)]),
            f"![mAP by bits](results-{data.name}.svg)",
        ]
    return "\n\n".join(
        textwrap.fill(part, 120, break_long_words=False) if part[0] not in "|#!" else part for part in parts
    )


def _unfolded(results: Results) -> str:
    names = ", ".join(sorted(name for name, result in results.items() if result["parity"]["unfolded"]))
    if not names:
        return ""
    return (
        f" The folded graph of {names} was refused, for a logit nearer to 0 than float arithmetic resolves; the graph "
        "that counts is the unfolded one. Integer networks have no such case."
    )


def _row(configuration: Configuration, cells: list[list[float]], sign: str) -> str:
    return f"| {configuration.title} | " + " | ".join(spread(values, sign) for values in cells) + " |"


def _gains(experiment: Experiment, results: Results, data: str) -> list[str]:
    rows = []
    for each in experiment.configurations:
        if each.name == REFERENCE:
            continue
        cells = []
        for bits in experiment.bits:
            ours, theirs = (values_of(results, data, name, bits) for name in (REFERENCE, each.name))
            cells.append([own - other for own, other in zip(ours, theirs, strict=True)])
        rows.append(_row(each, cells, "+"))
    return rows


def write_page(page: Path, experiment: Experiment, results: Results, machine: str) -> None:
    """Replace the section of the page, and beside it the drawing of each data set.

    Raises:
        InputError: there is no such page, or it has no place for the section.
    """
    pages.around(page, SECTION)
    for data in experiment.data:
        write_atomically(page.with_name(f"results-{data.name}.svg"), _drawing(experiment, results, data.name))
    pages.replace(page, SECTION, markdown(experiment, results, machine))


def _drawing(experiment: Experiment, results: Results, data: str) -> bytes:
    """Return an SVG: mAP over bits with its spread, and the precision-recall curve at the most bits, first seed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    by_bits, curves = figure.subplots(1, 2)
    most = max(experiment.bits)
    for each in experiment.configurations:
        cells = [values_of(results, data, each.name, bits) for bits in experiment.bits]
        by_bits.errorbar(
            experiment.bits,
            [statistics.fmean(values) for values in cells],
            [statistics.stdev(values) if len(values) > 1 else 0.0 for values in cells],
            marker="o",
            markersize=3,
            linewidth=1.2,
            capsize=2,
            label=each.title,
        )
        curve = next(
            result["retrieval"]["curve"]
            for result in results.values()
            if (run := result["identity"])["data"]["name"] == data
            and (run["configuration"]["name"], run["bits"], run["seed"]) == (each.name, most, experiment.seeds[0])
        )
        curves.plot([point["recall"] for point in curve], [point["precision"] for point in curve], linewidth=1.2)
    by_bits.set(xlabel="bits", ylabel="mAP@all, points", title=f"{data}: mean and spread", xticks=experiment.bits)
    by_bits.legend(fontsize=7)
    curves.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title=f"{most} bits, one seed")
    for axes in (by_bits, curves):
        axes.grid(alpha=0.3)
    drawing = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dmsh", "svg.fonttype": "none"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()
