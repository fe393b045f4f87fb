"""All results, as plain values for the page and the JSON file."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.rank.layouts import LayoutTiming, RerankEffect
    from benchmarks.rank.timing import Measured


__all__ = ["RankBench"]


@dataclass(frozen=True)
class RankBench:
    """All results of one run."""

    machine: str
    versions: dict[str, str]
    load_average: float  # at the start; above 0, other programs were busy too
    rounds: int
    measured: tuple["Measured", ...]
    layouts: tuple["LayoutTiming", ...]
    rerank: tuple["RerankEffect", ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
