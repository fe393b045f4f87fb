"""From one measured shard to many: what a search takes that ends with the slowest of S shards. A simulation.

Each shard's time is drawn from the searches of one shard that were measured here, in proportion to the codes it holds,
and a query ends when the last shard has answered. Networks, merging and other queries are left out.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["plot", "simulated"]

SHARDS: Final = (1, 2, 4, 8, 16, 32, 64)
_QUERIES: Final = 20_000
_QUANTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def simulated(milliseconds: list[float], codes: int, total: int) -> dict[int, dict[str, float]]:
    """Return quantiles in milliseconds of a search among ``total`` codes by number of shards.

    Args:
        milliseconds: searches that were measured among ``codes`` codes.
        codes: what one shard held then.
        total: codes of the whole gallery.
    """
    random, found = np.random.default_rng(0), {}
    for shards in SHARDS:
        each = np.array(milliseconds) * (total / shards / codes)
        slowest = random.choice(each, (_QUERIES, shards)).max(axis=1)
        found[shards] = {name: float(np.percentile(slowest, at)) for name, at in _QUANTILES.items()}
    return found


def plot(measured: dict[str, Any], out: Path) -> dict[str, Any]:
    """Draw the simulated times of 1e8, 1e9 and 1e10 codes as ``scale-shards.png`` in ``out``; return them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    results = {}
    for total, colour in ((10**8, "tab:blue"), (10**9, "tab:orange"), (10**10, "tab:green")):
        found = simulated(measured["every_millisecond"], measured["codes"], total)
        results[f"{total:.0e}"] = found
        for name, style in (("p50", "-"), ("p99", "--")):
            label = f"{total:,} codes, {name}"
            axes.plot(
                SHARDS, [found[each][name] / 1e3 for each in SHARDS], style, marker="o", color=colour, label=label
            )
    axes.set(xscale="log", yscale="log", xlabel="shards of one core", ylabel="seconds per search, k = 100")
    axes.set_xticks(SHARDS, [str(each) for each in SHARDS])
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out / "scale-shards.png", dpi=110)
    pyplot.close(figure)
    return results
