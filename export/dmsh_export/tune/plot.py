"""Throughput against p99, one line per setting, the budget and the choice marked."""

from pathlib import Path

from dmsh_export.tune.run import Tuning, describe
from dmsh_serving.files import write_atomically

__all__ = ["write_plot"]


def write_plot(path: Path, tuning: Tuning) -> None:
    """Draw ``tuning`` to the PNG file ``path``, whole or not at all."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for settings in dict.fromkeys(found.settings for found in tuning.live):
        loads = [found.load for found in tuning.live if found.settings == settings]
        axes.plot(
            [load.images_per_s for load in loads], [load.p99_ms for load in loads], marker="o", label=describe(settings)
        )
    chosen = tuning.chosen.load
    axes.scatter([chosen.images_per_s], [chosen.p99_ms], s=220, facecolors="none", edgecolors="#c0392b", zorder=3)
    axes.axhline(tuning.latency_ms, color="#c0392b", linestyle="--", linewidth=1)
    axes.set(xlabel="images/s", ylabel="p99 ms", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
