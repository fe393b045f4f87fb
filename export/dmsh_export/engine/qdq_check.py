"""What TensorRT needs of a Q/DQ graph: symmetric, in one type, and none in the head."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from dmsh_export.graph import element_types
from dmsh_serving.errors import InputError

__all__ = ["check_quantised", "with_plain_biases"]


def check_quantised(graph: onnx.GraphProto, head: frozenset[str], element_type: int, precision: str) -> None:
    """Refuse Q/DQ in the head, of another type than ``element_type``, or with a zero point other than 0.

    Raises:
        InputError: names the first such node.
    """
    types = element_types(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"{node.op_type} (node {node.name})"
        if node.name in head:
            raise InputError(f"{where} is in the head, which stays fp32: leave all from the pooling on unquantised")
        quantised = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        if types[quantised] not in (element_type, TensorProto.INT32):
            found = TensorProto.DataType.Name(types[quantised]).lower()
            raise InputError(f"{where} is in {found}, --{precision} takes {precision} only: quantise symmetrically")
        if len(node.input) > 2 and node.input[2] and not _is_zero(weights.get(node.input[2])):
            raise InputError(f"{where} has a zero point other than 0, TensorRT takes symmetric quantisation only")


def _is_zero(zero_point: onnx.TensorProto | None) -> bool:
    return zero_point is not None and not numpy_helper.to_array(zero_point).astype(np.float32).any()


def with_plain_biases(graph: onnx.GraphProto) -> None:
    """Replace each bias that is INT32 through DequantizeLinear, which TensorRT refuses, by its FP32 values."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        source = weights.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is None or source.data_type != TensorProto.INT32:
            kept.append(node)
            continue
        scale = numpy_helper.to_array(weights[node.input[1]])
        # Float64 holds the product of an int32 and a float32 scale exactly: one rounding.
        bias = numpy_helper.to_array(source).astype(np.float64) * scale
        graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    initialisers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initialisers)
