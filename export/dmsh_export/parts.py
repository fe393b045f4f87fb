"""The parts of an encoder's graph, by the names of their nodes; :mod:`dmsh_export.graph` tells them apart."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["stem", "trunk", "head", "edge"]


@dataclass(frozen=True)
class GraphParts:
    """Names of the ONNX nodes of each part (:mod:`dmsh_export.graph`); what the typed pass added is ``edge``."""

    stem: frozenset[str]
    trunk: frozenset[str]
    head: frozenset[str]

    def part_of(self, node: str) -> Part:
        """Return the part of one ONNX node."""
        if node in self.head:
            return "head"
        if node in self.trunk:
            return "trunk"
        return "stem" if node in self.stem else "edge"
