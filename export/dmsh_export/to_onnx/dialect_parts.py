"""The parts that the ONNX dialects of the integer network share: the graph under construction, the head, and the code.

The trunk (feature maps) differs by dialect. The head (vectors, from the global pooling on) is the same: float32 tensors
that hold integers. They are exact because every sum stays below 2^24; Round (half to even) and Clip finish a layer.
Weights stay plain integers, and each shift is a factor of its own, so that the graph can be read back without guessing.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dmsh_export.to_onnx.packing import packing
from dmsh_model.integer.layers import Add, Concat, GlobalMax, GlobalSum, Int8, Int32, Layer, Linear, Logits
from dmsh_serving.codes import bytes_per_code
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.errors import CheckError

__all__ = ["Graph", "Trunk", "exact_float32", "node_name", "powers", "write_head", "write_sum"]

MAP_AXES = np.array([2, 3], np.int64)


class Graph:
    """Nodes and constants in the order they are added; a node's first output bears its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node called ``name`` and return its output, called the same."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a constant, once per name, and return its name."""
        self._constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def power(self, exponent: int) -> str:
        """Return the float32 constant 2^exponent."""
        return self.constant(f"2^{exponent}", np.float32(2.0**exponent))

    def proto(self, image_size: int, bits: int) -> onnx.GraphProto:
        """Return the whole graph, dynamic in the batch."""
        shapes = {LOGITS: (TensorProto.FLOAT, bits), CODE: (TensorProto.UINT8, bytes_per_code(bits))}
        return helper.make_graph(
            self.nodes,
            "dmsh",
            [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", image_size, image_size, 3])],
            [helper.make_tensor_value_info(name, kind, ["batch", width]) for name, (kind, width) in shapes.items()],
            list(self._constants.values()),
        )


class Trunk(Protocol):
    """How a dialect writes the layers that give feature maps."""

    def write(self, index: int, name: str, layer: Layer, values: list[str]) -> str:
        """Add the nodes of layer ``index``, called ``name``; return the tensor that later layers of the trunk read."""
        ...

    def real(self, value: str) -> str:
        """Return the float32 tensor that holds the integers of the trunk's tensor ``value``."""
        ...


def node_name(index: int, layer: Layer) -> str:
    """Return the name of a layer's main node: unique, and readable."""
    return f"{index}_{layer.name or type(layer).__name__}"


def write_head(graph: Graph, trunk: Trunk, name: str, layer: Layer, values: list[str]) -> str:
    """Add the nodes of a layer that gives vectors (N, C); return its float32 tensor of integers."""
    match layer:
        case GlobalMax():
            axes = graph.constant("map_axes", MAP_AXES)
            return graph.node("ReduceMax", [trunk.real(values[layer.source]), axes], name, keepdims=0)
        case GlobalSum():
            axes = graph.constant("map_axes", MAP_AXES)
            sums = graph.node("ReduceSum", [trunk.real(values[layer.source]), axes], name, keepdims=0)
            return _rounded(graph, name, sums, graph.power(-layer.shift), layer)
        case Concat():
            return graph.node("Concat", [values[part] for part in layer.parts], name, axis=1)
        case Add():
            return _rounded(graph, name, write_sum(graph, name, layer, values), graph.power(-layer.shift), layer)
        case Linear():
            factor = graph.constant(f"{name}.factor", powers(-layer.shift.astype(int)))
            return _rounded(graph, name, _product(graph, name, layer, values), factor, layer)
        case Logits():
            factor = graph.constant(f"{name}.factor", powers(layer.exponent.astype(int)))
            graph.nodes.append(
                helper.make_node("Mul", [_product(graph, name, layer, values), factor], [LOGITS], name=f"{name}.scale")
            )
            _write_code(graph, len(layer.weight))
            return LOGITS
        case _:
            raise TypeError(f"{type(layer).__name__} gives no vectors")


def write_sum(graph: Graph, name: str, layer: Add, reals: list[str]) -> str:
    """Add left * 2^left_shift + right * 2^right_shift on float32 tensors of integers; return the sum."""
    sides = []
    for side, source, shift in (("left", layer.left, layer.left_shift), ("right", layer.right, layer.right_shift)):
        value = reals[source]
        sides.append(graph.node("Mul", [value, graph.power(shift)], f"{name}.{side}") if shift else value)
    return graph.node("Add", sides, name)


def powers(exponents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return 2^exponents, float32."""
    return np.asarray(np.ldexp(1.0, exponents), np.float32)


def exact_float32(name: str, values: Int8 | Int32) -> npt.NDArray[np.float32]:
    """Return integers as float32; raise :class:`CheckError` if one is not representable."""
    floats = values.astype(np.float32)
    if not np.array_equal(floats.astype(np.float64), values):
        raise CheckError(f"layer {name}: a bias of {np.abs(values).max()} is no float32: quantise the model again")
    return floats


def _product(graph: Graph, name: str, layer: Linear | Logits, values: list[str]) -> str:
    weight = graph.constant(f"{name}.weight", exact_float32(name, layer.weight))
    bias = graph.constant(f"{name}.bias", exact_float32(name, layer.bias))
    return graph.node("Gemm", [values[layer.source], weight, bias], name, transB=1)


def _rounded(graph: Graph, name: str, sums: str, factor: str, layer: GlobalSum | Add | Linear) -> str:
    scaled = graph.node("Mul", [sums, factor], f"{name}.shift")
    rounded = graph.node("Round", [scaled], f"{name}.round")
    bounds = [graph.constant(f"float_{bound}", np.float32(bound)) for bound in (layer.low, layer.high)]
    return graph.node("Clip", [rounded, *bounds], f"{name}.clip")


def _write_code(graph: Graph, bits: int) -> None:
    above = graph.node("Greater", [LOGITS, graph.constant("float_0", np.float32(0))], "code.above")
    ones = graph.node("Cast", [above], "code.ones", to=TensorProto.FLOAT)
    packed = graph.node("MatMul", [ones, graph.constant("code.packing", packing(bits))], "code.packed")
    graph.node("Cast", [packed], CODE, to=TensorProto.UINT8)
