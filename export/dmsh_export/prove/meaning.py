"""What the tensors of an integer model mean: the state of a reading, and the checks that its readers share."""

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

__all__ = ["Bits", "LogitsRead", "Meaning", "Pending", "Pixels", "Quantised", "Reading", "Real", "Weight", "dialect_of"]


@dataclass(frozen=True)
class Pixels:
    """The image before it is the first layer of the network."""

    stage: Literal["uint8", "uint8 transposed", "float", "transposed", "centred"]


@dataclass(frozen=True)
class Quantised:
    """The integers of a layer, in the 8-bit type of the dialect."""

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
    """A layer in float32 before it is rounded to 8 bits: ``kind(**fields)`` still lacks its shift and its clip range.

    Attributes:
        kind: class of the layer.
        node: name of its main node.
        fields: what is known of the layer.
        exponents: minus the shift so far, () or (O,).
        channels: O if each channel has its own shift, else 0.
        low: least value after the clip.
        high: greatest value after the clip.
        clipped: whether a node has clipped it.
        rounded: whether a node has rounded it.
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
    """A stage between the logits and the code."""

    stage: Literal["above", "ones", "packed", "code"]


Meaning = Pixels | Quantised | Real | Weight | Pending | LogitsRead | Bits


@dataclass
class Reading:
    """The layers and the meaning of each tensor, as far as the graph has been read.

    Attributes:
        graph: the graph.
        layers: the layers of the network so far.
        tensors: the name of the tensor that first holds each layer's integers.
        meanings: tensor -> its meaning.
        constants: the graph's constants by name.
        users: how many inputs of nodes read each tensor.
        rounded: the convolutions whose sums a Round node rounds before they are quantised.
        dialect: the dialect that the graph is read as.
    """

    graph: onnx.GraphProto
    layers: list[Layer] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    meanings: dict[str, Meaning] = field(default_factory=lambda: {IMAGE: Pixels("uint8")})
    rounded: set[int] = field(default_factory=set)
    constants: dict[str, onnx.TensorProto] = field(init=False)
    users: Counter[str] = field(init=False)
    dialect: Dialect = field(init=False)

    def __post_init__(self) -> None:
        """Look up constants and users. The dialect shows in what reads the image: see :func:`dialect_of`."""
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.users = Counter(name for node in self.graph.node for name in node.input if name)
        self.dialect = dialect_of(self.graph)

    @property
    def is_qdq(self) -> bool:
        """Whether feature maps are float32 that have gone through int8, and not uint8 themselves."""
        return self.dialect != "onnxruntime"

    def meaning(self, node: Node, position: int = 0) -> Meaning | None:
        """Return the meaning of an input; None of a constant."""
        return self.meanings.get(node.inputs[position]) if node.has(position) else None

    def real(self, node: Node, position: int = 0) -> Real:
        """Return the meaning of an input that must hold a layer's integers in float32."""
        value = self.meaning(node, position)
        if not isinstance(value, Real):
            raise node.error(f"its input {node.inputs[position]} does not hold the integers of a layer")
        return value

    def integers(self, node: Node, position: int = 0) -> int:
        """Return the layer whose integers an input holds in float32, without a factor."""
        value = self.real(node, position)
        node.require(value.exponent == 0, f"its input {node.inputs[position]} is multiplied by 2^{value.exponent}")
        return value.layer

    def quantised(self, node: Node, position: int = 0) -> int:
        """Return the layer whose integers an input holds in 8 bits."""
        value = self.meaning(node, position)
        if not isinstance(value, Quantised):
            raise node.error(f"its input {node.inputs[position]} is not the 8-bit tensor of a layer")
        return value.layer

    def check_zero_point(self, node: Node, position: int) -> None:
        """Refuse a zero point of feature maps that is not the dialect's in value and type."""
        expected: np.uint8 | np.int8 = np.uint8(128) if self.dialect == "onnxruntime" else np.int8(0)
        value = node.scalar(position, "zero point", expected.dtype)
        node.require(value == expected, f"its zero point is {value}, the {self.dialect} dialect has {expected}")

    def add(self, node: Node, layer: Layer) -> int:
        """Append a layer whose integers ``node`` gives, and return its index."""
        self.layers.append(layer)
        self.tensors.append(node.outputs[0])
        return len(self.layers) - 1

    def is_vector(self, layer: int) -> bool:
        """Whether a layer gives vectors (N, C) and not feature maps (N, C, H, W)."""
        found = self.layers[layer]
        if isinstance(found, Concat | Add):
            return self.is_vector(sources(found)[0])
        return isinstance(found, GlobalMax | GlobalSum | Linear)

    def gives_vectors(self, pending: Pending) -> bool:
        """Whether an unfinished layer gives vectors (N, C) and not feature maps (N, C, H, W)."""
        if pending.kind is Add:
            return self.is_vector(pending.fields["left"])
        return pending.kind in (GlobalSum, Linear)

    def image(self, node: Node) -> int:
        """Add the image as the first layer."""
        node.require(not self.layers, "the image enters twice")
        kind = self.graph.input[0].type.tensor_type
        sides = [side.dim_value for side in kind.shape.dim]
        square = len(sides) == 4 and sides[1] == sides[2] and sides[3] == 3
        node.require(kind.elem_type == onnx.TensorProto.UINT8 and square, "its image is not uint8 [N, size, size, 3]")
        return self.add(node, Image(node.name, sides[1]))

    def complete(self, node: Node, pending: Pending) -> int:
        """Add the layer that ``node`` finishes: it is rounded and clipped there."""
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


def dialect_of(graph: onnx.GraphProto) -> Dialect:
    """Tell the dialect: tensorrt casts the image first, openvino transposes and then casts it."""
    readers = [node for node in graph.node if IMAGE in node.input]
    operators = {node.op_type for node in readers}
    if operators == {"Cast"}:
        return "tensorrt"
    moved = {name for node in readers for name in node.output}
    casts = any(node.op_type == "Cast" and moved.intersection(node.input) for node in graph.node)
    return "openvino" if operators == {"Transpose"} and casts else "onnxruntime"
