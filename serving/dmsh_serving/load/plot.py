"""Latency over throughput as a drawing, with its knee."""

import io
from collections.abc import Sequence
from pathlib import Path

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.files import write_atomically
from dmsh_serving.load.measure import Measured
from dmsh_serving.load.objectives import Objective, knee_of

__all__ = ["checked_plot_path", "write_plot"]


def checked_plot_path(path: Path) -> Path:
    """Return ``path`` if a plot can be made and written there: looked at before the work, not after it.

    Raises:
        InputError: it is no .svg in a folder that exists.
        MissingError: the package that draws is not installed.
    """
    if path.suffix != ".svg" or path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: name a file that ends in .svg, in a folder that exists")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingError("matplotlib is not installed, which draws: pip install 'dmsh-toolkit[demo]'") from error
    return path


def write_plot(path: Path, sweep: Sequence[Measured], objectives: Sequence[Objective], title: str) -> None:
    """Write median and p99 over throughput to an SVG file; a line for each objective."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for percentile in ("p50", "p99"):
        points = [(each.images_per_s, each.milliseconds(percentile)) for each in sweep]
        known = [point for point in points if point[1] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=4, label=percentile)
    for each in sweep:
        if (median := each.milliseconds("p50")) is not None:
            place = (each.images_per_s, median)
            axes.annotate(str(each.load), place, (3, -9), textcoords="offset points", fontsize=7)
    knee = knee_of(sweep)
    if knee is not None:
        axes.axvline(knee.images_per_s, linestyle=":", color="grey", label=f"knee: {knee.load}")
    for objective in objectives:
        axes.axhline(objective.most_ms, linestyle="--", color="tab:red", linewidth=1, label=str(objective))
    axes.set(xlabel="images per second", ylabel="latency, ms", title=title, yscale="log")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    drawing = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dmsh", "svg.fonttype": "none"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    write_atomically(path, drawing.getvalue())
