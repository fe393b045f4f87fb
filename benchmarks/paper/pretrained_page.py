"""The figures on a frozen trunk as tables: mAP of every method, and what three scales gain over it, paired by seed."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Final

from dmsh_serving import console

__all__ = ["gain", "markdown", "print_results"]

REFERENCE: Final = "fused"
PARTNER: Final = {"no labels, stage 5": "no labels"}  # what a method is compared with, if not with REFERENCE

Results = Mapping[str, float]
"""mAP@all, 0 to 1, by the name of a run: size/bits/seed/method."""


def gain(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the paired differences and half the width of its 95% interval (Student's t)."""
    from scipy.stats import t

    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / math.sqrt(len(differences))
    return fmean(differences), half


def print_results(
    results: Results, titles: Mapping[str, str], sizes: Sequence[int], bits: Sequence[int], seeds: int
) -> None:
    """Print a table for each image size."""
    for side in sizes:
        console.print_table(
            f"{side} pixels: mAP@all in points, mean ± deviation of {seeds} seeds",
            ["method", *(f"{number} bits" for number in bits)],
            _maps(results, titles, side, bits, seeds),
        )
        console.print_table(
            f"{side} pixels: what three scales gain over each, with its 95% interval",
            ["method", *(f"{number} bits" for number in bits)],
            _gains(results, titles, side, bits, seeds),
        )


def markdown(results: Results, titles: Mapping[str, str], sizes: Sequence[int], bits: Sequence[int], seeds: int) -> str:
    """Return the tables as a section of a page."""
    parts = [
        f"{len(results)} results of {len(sizes)} image sizes, {seeds} seeds each. mAP@all of held-out queries in "
        "points, mean ± deviation. A gain is what "
        "stages 3, 4 and 5 have more than the method of the row, the mean of the "
        "differences of one seed each, with its 95% interval; bold if the interval lies on one side of 0. The gain "
        "over the last row is that of three scales without labels."
    ]
    for side in sizes:
        parts += [
            f"### {side} pixels",
            _table("method", bits, _maps(results, titles, side, bits, seeds)),
            _table("gain of 3, 4, 5 over", bits, _gains(results, titles, side, bits, seeds)),
        ]
    return "\n\n".join(textwrap.fill(part, 120) if part[0] not in "|#" else part for part in parts)


def _maps(results: Results, titles: Mapping[str, str], side: int, bits: Sequence[int], seeds: int) -> list[list[str]]:
    return [
        [title, *(_spread(_values(results, side, number, seeds, name)) for number in bits)]
        for name, title in titles.items()
    ]


def _gains(results: Results, titles: Mapping[str, str], side: int, bits: Sequence[int], seeds: int) -> list[list[str]]:
    rows = []
    for name, title in titles.items():
        if name == REFERENCE:
            continue
        pairs = [
            [_values(results, side, number, seeds, each) for each in (PARTNER.get(name, REFERENCE), name)]
            for number in bits
        ]
        rows.append([title, *(_interval(*gain(ours, theirs)) for ours, theirs in pairs)])
    return rows


def _values(results: Results, side: int, bits: int, seeds: int, method: str) -> list[float]:
    return [100 * results[f"{side}/{bits}/{seed}/{method}"] for seed in range(seeds)]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def _interval(mean: float, half: float) -> str:
    text = f"{mean:+.1f} ({mean - half:.1f} to {mean + half:.1f})"
    return f"**{text}**" if abs(mean) > half else text


def _table(first: str, bits: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    head = f"| {first} | " + " | ".join(f"{number} bits" for number in bits) + " |"
    return "\n".join([head, "|---|" + "---:|" * len(bits), *("| " + " | ".join(row) + " |" for row in rows)])
