"""What the tensors of an integer model mean: the state of reading a graph back, and the checks its operators share."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from dmsh_export.graph import Dialect
from dmsh_export.prove.nodes import Node
from dmsh_model.integer.layers import (
    HIGHEST,
    LOWEST,
    MAX_SHIFT,
    Add,
    Concat,
    GlobalMax,
    GlobalSum,
    Image,
    Int8,
    Layer,
    Linear,
    MaxPool,
    sources,
)
from dmsh_serving.contract import IMAGE


@dataclass(frozen=True)
class Pixels:
    """The image on its way in."""

    stage: Literal["uint8", "float", "transposed", "centred"]


@dataclass(frozen=True)
class Quantised:
    """The integers of a layer, in the dialect's 8-bit type."""

    layer: int


@dataclass(frozen=True)
class Real:
    """A float32 tensor: a layer's integers times 2^exponent."""

    layer: int
    exponent: int = 0


@dataclass(frozen=True, eq=False)
class Weight:
    """A convolution's weights in float32: ``values`` (O, C, h, w) times 2^``exponents`` (O,)."""

    values: Int8
    exponents: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pending:
    """A layer in float32 before it is an 8-bit integer: ``kind(**fields)`` lacks its shift and its clip range.

    ``exponents`` is minus the shift so far, () or (O,); ``channels`` is O where each channel has its own, else 0.
    """

    kind: Callable[..., Layer]
    node: str
    fields: dict[str, Any]
    exponents: Any = 0
    channels: int = 0
    low: int = LOWEST
    high: int = HIGHEST
    clipped: bool = False
    rounded: bool = False


@dataclass(frozen=True)
class LogitsRead:
    """The finished logits."""


@dataclass(frozen=True)
class Bits:
    """The logits on their way to the code."""

    stage: Literal["above", "ones", "packed", "code"]


Meaning = Pixels | Quantised | Real | Weight | Pending | LogitsRead | Bits


@dataclass
class Reading:
    """The layers so far, and the meaning of each tensor so far."""

    graph: onnx.GraphProto
    layers: list[Layer] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)  # where each layer's integers first are
    meanings: dict[str, Meaning] = field(default_factory=lambda: {IMAGE: Pixels("uint8")})
    constants: dict[str, onnx.TensorProto] = field(init=False)
    users: Counter[str] = field(init=False)
    dialect: Dialect = field(init=False)

    def __post_init__(self) -> None:
        """Look up constants and users; how the image enters tells the dialect."""
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.users = Counter(name for node in self.graph.node for name in node.input if name)
        first = next((node for node in self.graph.node if IMAGE in node.input), None)
        self.dialect = "tensorrt" if first is not None and first.op_type == "Cast" else "onnxruntime"

    def meaning(self, node: Node, position: int = 0) -> Meaning | None:
        """Return the meaning of an input; None of a constant."""
        return self.meanings.get(node.inputs[position]) if node.has(position) else None

    def real(self, node: Node, position: int = 0) -> Real:
        """Return an input that is float32 and a layer's."""
        value = self.meaning(node, position)
        if not isinstance(value, Real):
            raise node.error(f"its input {node.inputs[position]} does not hold the integers of a layer")
        return value

    def integers(self, node: Node, position: int = 0) -> int:
        """Return the layer whose plain integers an input holds in float32."""
        value = self.real(node, position)
        node.require(value.exponent == 0, f"its input {node.inputs[position]} is multiplied by 2^{value.exponent}")
        return value.layer

    def quantised(self, node: Node, position: int = 0) -> int:
        """Return the layer whose 8-bit tensor an input is."""
        value = self.meaning(node, position)
        if not isinstance(value, Quantised):
            raise node.error(f"its input {node.inputs[position]} is not the 8-bit tensor of a layer")
        return value.layer

    def check_zero_point(self, node: Node, position: int) -> None:
        """Refuse an activation's zero point that is not the dialect's, in its type."""
        expected: np.uint8 | np.int8 = np.uint8(128) if self.dialect == "onnxruntime" else np.int8(0)
        value = node.scalar(position, "zero point", expected.dtype)
        node.require(value == expected, f"its zero point is {value}, the {self.dialect} dialect has {expected}")

    def add(self, node: Node, layer: Layer) -> int:
        """Append a layer that is whole after ``node``, and return its index."""
        self.layers.append(layer)
        self.tensors.append(node.outputs[0])
        return len(self.layers) - 1

    def is_vector(self, layer: int) -> bool:
        """Whether a layer gives vectors, not feature maps."""
        found = self.layers[layer]
        if isinstance(found, Concat | Add):
            return self.is_vector(sources(found)[0])
        return isinstance(found, GlobalMax | GlobalSum | Linear)

    def image(self, node: Node) -> int:
        """Add the image."""
        node.require(not self.layers, "the image enters twice")
        return self.add(node, Image(node.name, self.graph.input[0].type.tensor_type.shape.dim[1].dim_value))

    def complete(self, node: Node, pending: Pending) -> int:
        """Add the layer whose rounding and clipping end at ``node``."""
        shift = -np.broadcast_to(np.asarray(pending.exponents, np.int64), (pending.channels or 1,))
        fields = dict(pending.fields)
        if pending.kind in (MaxPool, Concat):
            node.require(not shift.any() and not pending.clipped, "scales or clips what is only moved")
        else:
            wrong = shift[(shift < 0) | (shift > MAX_SHIFT)]
            if wrong.size:
                raise node.error(f"the shift {wrong[0]} of {pending.node} is not 0 to {MAX_SHIFT}")
            fields["shift"] = shift.astype(np.int8) if pending.channels else int(shift[0])
            fields["low"], fields["high"] = pending.low, pending.high
        return self.add(node, pending.kind(name=pending.node, **fields))
