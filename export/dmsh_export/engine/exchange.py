"""What the process that builds an engine is asked for, and what it answers: both cross the border as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dmsh_export.engine.audit import LayerRecord
from dmsh_export.engine.targets import HardwareCompatibility
from dmsh_export.engine.tensorrt_api import Flavour
from dmsh_export.parts import GraphParts

if TYPE_CHECKING:
    from dmsh_export.engine.precision import Precision

__all__ = ["BuildRequest", "BuildResult"]


@dataclass(frozen=True)
class BuildRequest:
    """One build; None leaves a setting at TensorRT's default.

    Attributes:
        flavour: the package that builds.
        precision: the type that the trunk must compute in.
        image_size: side of an image in pixels.
        profile: (least, best, greatest) batch size.
        workspace_mib: scratch memory per layer, in MiB.
        optimization_level: 0 to 5.
        version_compatible: whether later versions of TensorRT shall run the plan too.
        hardware_compatibility: which other GPUs shall run it.
        timing_cache: whether to read and write a timing cache.
        inspect: whether a GPU is here on which the engine inspector can load the plan.
        parts: the parts of the graph, which the audit tells apart.
    """

    flavour: Flavour
    precision: "Precision"
    image_size: int
    profile: tuple[int, int, int]
    workspace_mib: int | None
    optimization_level: int | None
    version_compatible: bool
    hardware_compatibility: HardwareCompatibility
    timing_cache: bool
    inspect: bool
    parts: GraphParts

    def to_json(self) -> str:
        """Return the request as one line of JSON; sets are sorted lists there."""
        return json.dumps(dataclasses.asdict(self), default=sorted)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        parts = GraphParts(**{name: frozenset(nodes) for name, nodes in fields.pop("parts").items()})
        return cls(**fields | {"profile": tuple(fields["profile"]), "parts": parts})


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        version: of TensorRT.
        reproducible: whether a second build of the same input gives the same bytes.
        network: the layers of the parsed network.
        inspected: the layers that the engine inspector names; empty without a GPU.
    """

    version: str
    reproducible: bool
    network: tuple[LayerRecord, ...]
    inspected: tuple[LayerRecord, ...]

    def to_fields(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Read what :meth:`to_fields` gave, after its way through JSON."""
        records = {name: tuple(LayerRecord(**record) for record in fields[name]) for name in ("network", "inspected")}
        return cls(**fields | records)
