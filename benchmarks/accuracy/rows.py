"""What was measured for one network and seed, kept beside the checkpoints, and the table of all that are kept."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from dmsh_serving.files import write_atomically

__all__ = ["QUANTISED_GOAL", "TUNED_GOAL", "Row", "kept", "markdown", "spread"]

QUANTISED_GOAL: Final = 0.5  # points of mAP that `quantize` alone may lose, mean over the seeds
TUNED_GOAL: Final = 0.1  # likewise after fine-tuning
_FILE = "rows.json"


@dataclass(frozen=True)
class Row:
    """One data set and seed: mAP@all of each network, and the share of the queries' bits equal to the float ones."""

    data: str
    seed: int
    float_map: float
    quantised_map: float
    fine_tuned_map: float
    quantised_equal_bits: float
    fine_tuned_equal_bits: float
    static_map: float

    @property
    def lost(self) -> list[float]:
        """Points of mAP lost by `quantize`, after fine-tuning, by ONNX Runtime's INT8; negative if gained."""
        others = (self.quantised_map, self.fine_tuned_map, self.static_map)
        return [100 * (self.float_map - other) for other in others]


def kept(rows: Sequence[Row], folder: Path) -> list[Row]:
    """Keep ``rows`` in ``folder`` and return them with those kept before, but for these very networks and seeds."""
    file = folder / _FILE
    before = [Row(**values) for values in json.loads(file.read_text())] if file.is_file() else []
    measured = {(row.data, row.seed) for row in rows}
    every = [*(row for row in before if (row.data, row.seed) not in measured), *rows]
    write_atomically(file, json.dumps([dataclasses.asdict(row) for row in every], indent=1).encode())
    return sorted(every, key=lambda row: (row.data, row.seed))


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with one line per data set and network: means and deviations over the seeds."""
    lines = [
        "| data, network | seeds | float mAP | lost by `quantize` | lost after fine-tuning | "
        "lost by ONNX Runtime's INT8 | equal bits, then fine-tuned |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for data in dict.fromkeys(row.data for row in rows):
        own = [row for row in rows if row.data == data]
        losses = (spread([row.lost[which] for row in own]) for which in range(3))
        shares = (f"{fmean(getattr(row, name) for row in own):.2%}" for name in _SHARES)
        lines.append(
            f"| {data} | {len(own)} | {spread([100 * row.float_map for row in own])} | {' | '.join(losses)} | "
            f"{', '.join(shares)} |"
        )
    return "\n".join(lines)


_SHARES = ("quantised_equal_bits", "fine_tuned_equal_bits")


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{fmean(values):.2f} ± {stdev(values) if len(values) > 1 else 0.0:.2f}"
