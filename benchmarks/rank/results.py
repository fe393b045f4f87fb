"""Everything that was measured, as plain values for the page and the JSON file."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.rank.layouts import LayoutTiming, RerankEffect
    from benchmarks.rank.timing import Measured


@dataclass(frozen=True)
class RankBench:
    """Everything that was measured."""

    machine: str
    versions: dict[str, str]
    load_average: float  # when it began: above 0 others were busy too
    rounds: int
    measured: tuple["Measured", ...]
    layouts: tuple["LayoutTiming", ...]
    rerank: tuple["RerankEffect", ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
