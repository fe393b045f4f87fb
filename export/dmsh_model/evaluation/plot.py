"""The precision-recall curve as a drawing."""

import io
from pathlib import Path

from dmsh_model.evaluation.report import LOOKUP_RADIUS, Retrieval
from dmsh_serving.errors import InputError
from dmsh_serving.files import write_atomically

__all__ = ["checked_plot_path", "write_curve"]


def checked_plot_path(path: Path) -> Path:
    """Return ``path`` if a plot can be written there, else raise :class:`InputError`: before the work, not after it."""
    if path.suffix != ".svg":
        raise InputError(f"--plot {path}: name a file that ends in .svg")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: name a file in a folder that exists")
    return path


def write_curve(path: Path, retrieval: Retrieval, title: str) -> None:
    """Write precision over recall, a point for each Hamming radius, to an SVG file; the same curve, the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    recall, precision = ([getattr(point, name) for point in retrieval.curve] for name in ("recall", "precision"))
    axes.plot(recall, precision, marker="o", markersize=3, linewidth=1.2)
    for point in retrieval.curve:
        if point.radius == LOOKUP_RADIUS:
            axes.annotate(
                f"radius {LOOKUP_RADIUS}",
                (point.recall, point.precision),
                (-6, -12),
                textcoords="offset points",
                ha="right",
            )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    drawing = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dmsh", "svg.fonttype": "none"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    write_atomically(path, drawing.getvalue())
