"""The encoders' figures as Markdown between the markers of a page, and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.encode.contenders import EAGER
from benchmarks.encode.files import FLOAT, INTEGER, INTEGER_OPENVINO, OPENVINO_INT8, STATIC_INT8
from benchmarks.encode.timing import Row, Setting, Wrong

if TYPE_CHECKING:
    from benchmarks.encode.results import EncodeBench

__all__ = ["BASELINES", "markdown", "plot", "ratio", "setting_name"]

# The encoders that the integer one is compared with: {shown: names}; the fastest of the names counts.
BASELINES: Final = {
    "PyTorch eager": (EAGER,),
    "ONNX Runtime fp32": (FLOAT,),
    "ONNX Runtime's inexact INT8": tuple(STATIC_INT8),
    "the fastest inexact INT8": (*STATIC_INT8, *OPENVINO_INT8),
}
_COLOURS: Final = {
    "PyTorch": "#b8b8b8",
    "ONNX Runtime fp32": "#7d9ec0",
    "ONNX Runtime INT8": "#c98f5a",
    "OpenVINO INT8": "#c98f5a",
    "OpenVINO": "#9b86b8",
    "integer": "#2c7a4b",
}


def ratio(rows: Sequence[Row], network: str, setting: Setting, baseline: Sequence[str]) -> float:
    """Return how many times faster the integer network's faster runtime is than the fastest of ``baseline``."""
    speed = {row.contender: row.images_per_s for row in _of(rows, network, setting)}
    ours = max(speed[name] for name in (INTEGER, INTEGER_OPENVINO) if name in speed)
    return ours / max(speed[name] for name in baseline if name in speed)


def markdown(bench: "EncodeBench") -> str:
    """Return the tables: speeds, wrong bits, ratios."""
    wrong = {(entry.network, entry.contender): entry for entry in bench.wrong}
    parts = [f"{bench.machine}; {', '.join(f'{name} {version}' for name, version in bench.versions.items())}."]
    for network in dict.fromkeys(row.network for row in bench.rows):
        rows = [row for row in bench.rows if row.network == network]
        columns = list(dict.fromkeys(Setting(row.batch, row.threads) for row in rows))
        lines = [
            f"**{network}**, images/s (share of the peak)",
            "",
            "| encoder | "
            + " | ".join(map(setting_name, columns))
            + " | wrong bits | different logits | instructions |",
            "|---|" + "---:|" * (len(columns) + 2) + "---|",
        ]
        for contender in dict.fromkeys(row.contender for row in rows):
            speeds = {Setting(row.batch, row.threads): row for row in rows if row.contender == contender}
            cells = [_speed(speeds.get(column)) for column in columns]
            cells += [*_wrong_cells(wrong[network, contender]), _isa(list(speeds.values()))]
            lines.append(f"| {contender} | " + " | ".join(cells) + " |")
        for name, names in BASELINES.items():
            cells = [f"**{ratio(rows, network, column, names):.2f}x**" for column in columns]
            lines.append(f"| fastest integer network / {name} | " + " | ".join(cells) + " | | | |")
        parts.append("\n".join(lines))
    peaks = ", ".join(
        f"{peak.arithmetic} on {_threads(peak.threads)} {peak.operations_per_s / 1e9:,.0f} G/s" for peak in bench.peaks
    )
    parts.append(
        f"Peak, the best of some large matrix products in ONNX Runtime, multiplications and additions: {peaks}."
    )
    parts += [f"Not timed: {reason}." for reason in bench.left_out]
    return "\n\n".join(parts)


def setting_name(setting: Setting) -> str:
    """Return a setting for people, such as ``batch 4, 2 threads``."""
    return f"batch {setting.batch}, {_threads(setting.threads)}"


def plot(path: Path, bench: "EncodeBench") -> None:
    """Draw one panel per network: images/s of every encoder on all threads, at its largest batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = list(dict.fromkeys(row.network for row in bench.rows))
    figure, panels = pyplot.subplots(1, len(networks), figsize=(4.6 * len(networks), 3.6), sharey=True, squeeze=False)
    for panel, network in zip(panels[0], networks, strict=True):
        rows = [row for row in bench.rows if row.network == network]
        setting = max((Setting(row.batch, row.threads) for row in rows), key=lambda one: (one.threads, one.batch))
        shown = _of(rows, network, setting)[::-1]
        bars = panel.barh(
            [row.contender for row in shown],
            [row.images_per_s for row in shown],
            color=[_colour(row.contender) for row in shown],
        )
        wrong = {entry.contender: entry for entry in bench.wrong if entry.network == network}
        labels = [f" {row.images_per_s:,.0f}  {_short(wrong[row.contender])}" for row in shown]
        panel.bar_label(bars, labels, fontsize=8)
        panel.set_title(f"{network}, {setting_name(setting)}", fontsize=10)
        panel.set_xlim(0, 1.55 * max(row.images_per_s for row in shown))
        panel.set_xlabel("images/s", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date or version: the same figures give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def _of(rows: Sequence[Row], network: str, setting: Setting) -> list[Row]:
    return [row for row in rows if row.network == network and Setting(row.batch, row.threads) == setting]


def _speed(row: Row | None) -> str:
    if row is None:
        return ""
    digits = 0 if row.images_per_s >= 100 else 1
    return f"{row.images_per_s:,.{digits}f} ({row.share_of_peak:.0%})"


def _isa(rows: Sequence[Row]) -> str:
    """Return the instructions of a contender in all settings: OpenVINO may take others on fewer threads."""
    return ", ".join(dict.fromkeys(row.isa for row in rows))


def _wrong_cells(wrong: Wrong) -> list[str]:
    return [f"{wrong.wrong_bits:,} of {wrong.bits:,}", f"{wrong.different_logits:,}"]


def _short(wrong: Wrong) -> str:
    return "exact" if not wrong.different_logits else f"{wrong.wrong_bits / wrong.bits:.2%} wrong bits"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _colour(contender: str) -> Any:
    return next(colour for start, colour in _COLOURS.items() if contender.startswith(start))
