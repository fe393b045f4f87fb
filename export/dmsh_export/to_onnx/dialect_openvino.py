"""The openvino dialect of the trunk: the tensorrt dialect's Q/DQ, with an explicit rounding before each addition.

OpenVINO fuses Conv, QuantizeLinear, DequantizeLinear, Add and the next QuantizeLinear into one kernel that leaves out
the inner rounding: round((round(x) + y) / 2^s) becomes round((x + y) / 2^s), another integer at ties. An ONNX Round
(half to even) before the QuantizeLinear changes nothing in the definition, and no fusion may drop it. The image is
transposed before it is cast, in a quarter of the bytes; by this a reader tells the two Q/DQ dialects apart.
"""

from onnx import TensorProto

from dmsh_export.to_onnx.dialect_parts import Graph
from dmsh_export.to_onnx.dialect_tensorrt import TensorRTTrunk
from dmsh_model.integer.layers import Add, Convolution
from dmsh_model.integer.network import IntegerNetwork
from dmsh_serving.contract import IMAGE

__all__ = ["OpenVinoTrunk"]


class OpenVinoTrunk(TensorRTTrunk):
    """Writes feature maps as float32 tensors that have gone through int8."""

    def __init__(self, graph: Graph, network: IntegerNetwork) -> None:
        super().__init__(graph)
        added = {side for layer in network.layers if isinstance(layer, Add) for side in (layer.left, layer.right)}
        self._rounded = {index for index in added if isinstance(network.layers[index], Convolution)}

    def _pixels(self, name: str) -> str:
        maps = self._graph.node("Transpose", [IMAGE], f"{name}.transpose", perm=[0, 3, 1, 2])
        return self._graph.node("Cast", [maps], f"{name}.cast", to=TensorProto.FLOAT)

    def _finished(self, index: int, name: str, value: str) -> str:
        return self._graph.node("Round", [value], f"{name}.round") if index in self._rounded else value
