"""Everything that was measured, as plain values for the page and the JSON file."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.encode.timing import Row, Wrong

__all__ = ["EncodeBench", "Peak"]


@dataclass(frozen=True)
class Peak:
    """Multiplications and additions per second of the fastest matrix product."""

    arithmetic: str
    threads: int
    operations_per_s: float


@dataclass(frozen=True)
class EncodeBench:
    """Everything that was measured, and the contenders that could not be, with the reason."""

    machine: str
    versions: dict[str, str]
    peaks: tuple[Peak, ...]
    rows: tuple["Row", ...]
    wrong: tuple["Wrong", ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)
