"""The tensorrt dialect of the trunk: explicit, symmetric Q/DQ in int8, each tensor at scale 1, biases in FP32.

TensorRT takes uint8 only at the network's edge, so the image is cast before it is transposed. It takes Q/DQ only with
zero point 0, and a bias only in FP32. Each convolution reads its input and its weights from DequantizeLinear, the
weights at the scale 2^-shift, and is quantised after its ReLU.
"""

import numpy as np
from onnx import TensorProto

from dmsh_export.to_onnx.dialect_parts import Graph, exact_float32, powers, write_sum
from dmsh_model.integer.layers import HIGHEST, LOWEST, Add, Concat, Convolution, Image, Layer, MaxPool
from dmsh_serving.contract import IMAGE

__all__ = ["TensorRTTrunk"]

ZERO_POINT = np.int8(0)


class TensorRTTrunk:
    """Writes feature maps as float32 tensors that have gone through int8."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def write(self, index: int, name: str, layer: Layer, values: list[str]) -> str:
        """Add the nodes of a layer; return its float32 tensor."""
        graph = self._graph
        match layer:
            case Image():
                return self._quantised(graph.node("Sub", [self._pixels(name), graph.power(7)], name), name)
            case Convolution():
                clipped = self._clipped(self._convolution(name, layer, values), name, layer)
                return self._quantised(self._finished(index, name, clipped), name)
            case MaxPool():
                pooled = graph.node(
                    "MaxPool", [values[layer.source]], name,
                    kernel_shape=layer.kernel, strides=layer.stride, pads=layer.padding, dilations=layer.dilation,
                )  # fmt: skip
                return self._quantised(pooled, name)
            case Add():
                total = write_sum(graph, name, layer, values)
                if layer.shift:
                    total = graph.node("Mul", [total, graph.power(-layer.shift)], f"{name}.shift")
                return self._quantised(self._clipped(total, name, layer), name)
            case Concat():
                joined = graph.node("Concat", [values[part] for part in layer.parts], name, axis=1)
                return self._quantised(joined, name)
            case _:
                raise TypeError(f"{type(layer).__name__} gives no feature maps")

    def real(self, value: str) -> str:
        """Return the tensor itself: it is float32."""
        return value

    def _pixels(self, name: str) -> str:
        """Return the image as float32 (N, 3, H, W)."""
        pixels = self._graph.node("Cast", [IMAGE], f"{name}.cast", to=TensorProto.FLOAT)
        return self._graph.node("Transpose", [pixels], f"{name}.transpose", perm=[0, 3, 1, 2])

    def _finished(self, index: int, name: str, value: str) -> str:
        """Return what is quantised of the convolution that is layer ``index``; ``value`` is its sums, clipped."""
        return value

    def _convolution(self, name: str, layer: Convolution, values: list[str]) -> str:
        graph = self._graph
        factors = powers(-layer.shift.astype(int))
        weight = graph.node(
            "DequantizeLinear",
            [
                graph.constant(f"{name}.weight", layer.weight),
                graph.constant(f"{name}.scale", factors),
                # Not shared, because of ONNX Runtime: see the other dialect.
                graph.constant(f"{name}.weight_zero_point", np.zeros(len(layer.weight), np.int8)),
            ],
            f"{name}.dequantised_weight",
            axis=0,
        )
        bias = graph.constant(f"{name}.bias", exact_float32(name, layer.bias) * factors)
        return graph.node(
            "Conv", [values[layer.source], weight, bias], name,
            kernel_shape=layer.weight.shape[2:], strides=layer.stride, pads=layer.padding,
            dilations=layer.dilation, group=layer.groups,
        )  # fmt: skip

    def _clipped(self, value: str, name: str, layer: Convolution | Add) -> str:
        if (layer.low, layer.high) == (LOWEST, HIGHEST):
            return value
        if (layer.low, layer.high) == (0, HIGHEST):
            return self._graph.node("Relu", [value], f"{name}.relu")
        bounds = [self._graph.constant(f"float_{bound}", np.float32(bound)) for bound in (layer.low, layer.high)]
        return self._graph.node("Clip", [value, *bounds], f"{name}.clip")

    def _quantised(self, value: str, name: str) -> str:
        graph = self._graph
        scale = [graph.power(0), graph.constant("zero_point", ZERO_POINT)]
        return graph.node(
            "DequantizeLinear",
            [graph.node("QuantizeLinear", [value, *scale], f"{name}.quantise"), *scale],
            f"{name}.dequantise",
        )
