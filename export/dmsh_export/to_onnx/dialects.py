"""The integer network -> an ONNX graph of standard operators, in one of three dialects."""

import onnx
from onnx import helper

from dmsh_export.graph import Dialect
from dmsh_export.to_onnx.dialect_onnxruntime import OnnxRuntimeTrunk
from dmsh_export.to_onnx.dialect_openvino import OpenVinoTrunk
from dmsh_export.to_onnx.dialect_parts import Graph, Trunk, node_name, write_head
from dmsh_export.to_onnx.dialect_tensorrt import TensorRTTrunk
from dmsh_model.integer.network import IntegerNetwork

__all__ = ["onnx_from_network"]

IR_VERSION = 10  # the newest that every ONNX Runtime from 1.19 on reads


def onnx_from_network(network: IntegerNetwork, dialect: Dialect, opset: int) -> onnx.ModelProto:
    """Return ``network`` as a model from ``image`` to ``logits`` and ``code``, without metadata.

    Raises:
        CheckError: an integer is not representable where the dialect holds floats.
    """
    graph = Graph()
    trunk = _trunk(graph, network, dialect)
    values: list[str] = []
    for index, (layer, shape) in enumerate(zip(network.layers, network.shapes, strict=True)):
        name = node_name(index, layer)
        if len(shape) == 3:
            values.append(trunk.write(index, name, layer, values))
        else:
            values.append(write_head(graph, trunk, name, layer, values))
    proto = graph.proto(network.image_size, network.bits)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def _trunk(graph: Graph, network: IntegerNetwork, dialect: Dialect) -> Trunk:
    match dialect:
        case "onnxruntime":
            return OnnxRuntimeTrunk(graph, network)
        case "openvino":
            return OpenVinoTrunk(graph, network)
        case "tensorrt":
            return TensorRTTrunk(graph)
