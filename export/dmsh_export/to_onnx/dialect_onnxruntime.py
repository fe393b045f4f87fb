"""The onnxruntime dialect of the trunk: uint8 tensors with zero point 128 through QLinearConv.

ONNX Runtime's CPU kernels run this form at the speed of ordinary INT8, and exactly at every level of optimisation:
int32 accumulators, one product with a power of two, round half to even. The image is such a tensor already. ReLU is a
Clip at 128. If a max pool is the only reader of the layer, the Clip moves behind it, where fewer values are left.
"""

from collections import Counter

import numpy as np

from dmsh_export.to_onnx.dialect_parts import Graph, powers
from dmsh_model.integer.layers import (
    HIGHEST,
    LOWEST,
    Add,
    Concat,
    Convolution,
    Image,
    Layer,
    MaxPool,
    sources,
)
from dmsh_model.integer.network import IntegerNetwork
from dmsh_serving.contract import IMAGE

__all__ = ["OnnxRuntimeTrunk"]

ZERO_POINT = np.uint8(128)


class OnnxRuntimeTrunk:
    """Writes feature maps as uint8, value + 128."""

    def __init__(self, graph: Graph, network: IntegerNetwork) -> None:
        self._graph = graph
        self._layers = network.layers
        self._users = Counter(source for layer in network.layers for source in sources(layer))
        self._pooled = {
            layer.source
            for layer in network.layers
            # A window with gaps could see nothing but padding, where a late clip differs from an early one.
            if isinstance(layer, MaxPool) and layer.dilation == (1, 1) and self._users[layer.source] == 1
        }
        self._reals: dict[str, str] = {}

    def write(self, index: int, name: str, layer: Layer, values: list[str]) -> str:
        """Add the nodes of a layer; return its uint8 tensor."""
        graph = self._graph
        match layer:
            case Image():
                return graph.node("Transpose", [IMAGE], name, perm=[0, 3, 1, 2])
            case Convolution():
                return self._clipped(index, name, self._convolution(name, layer, values[layer.source]), layer)
            case MaxPool():
                pooled = graph.node(
                    "MaxPool", [values[layer.source]], name,
                    kernel_shape=layer.kernel, strides=layer.stride, pads=layer.padding, dilations=layer.dilation,
                )  # fmt: skip
                before = self._layers[layer.source]
                if layer.source in self._pooled and isinstance(before, Convolution | Add):
                    return self._clip(pooled, name, before.low, before.high)
                return pooled
            case Add():
                sides = [
                    self._dequantised(values[source], f"{name}.{side}", shift)
                    for side, source, shift in (
                        ("left", layer.left, layer.left_shift),
                        ("right", layer.right, layer.right_shift),
                    )
                ]
                total = graph.node("Add", sides, name)
                quantised = graph.node(
                    "QuantizeLinear", [total, graph.power(layer.shift), self._zero_point()], f"{name}.quantise"
                )
                return self._clipped(index, name, quantised, layer)
            case Concat():
                return graph.node("Concat", [values[part] for part in layer.parts], name, axis=1)
            case _:
                raise TypeError(f"{type(layer).__name__} gives no feature maps")

    def real(self, value: str) -> str:
        """Return the float32 tensor of a uint8 one."""
        if value not in self._reals:
            self._reals[value] = self._dequantised(value, f"{value}.real", 0)
        return self._reals[value]

    def _convolution(self, name: str, layer: Convolution, source: str) -> str:
        graph = self._graph
        one, zero_point = graph.power(0), self._zero_point()
        inputs = [
            source, one, zero_point,
            graph.constant(f"{name}.weight", layer.weight),
            graph.constant(f"{name}.scale", powers(-layer.shift.astype(int))),
            # Not shared: ONNX Runtime's precision pass for CPUs without VNNI rewrites one per convolution.
            graph.constant(f"{name}.weight_zero_point", np.zeros(len(layer.weight), np.int8)),
            one, zero_point,
            graph.constant(f"{name}.bias", layer.bias),
        ]  # fmt: skip
        return graph.node(
            "QLinearConv", inputs, name,
            kernel_shape=layer.weight.shape[2:], strides=layer.stride, pads=layer.padding,
            dilations=layer.dilation, group=layer.groups,
        )  # fmt: skip

    def _clipped(self, index: int, name: str, value: str, layer: Convolution | Add) -> str:
        return value if index in self._pooled else self._clip(value, name, layer.low, layer.high)

    def _clip(self, value: str, name: str, low: int, high: int) -> str:
        if (low, high) == (LOWEST, HIGHEST):
            return value
        bounds = [
            self._graph.constant(f"uint8_{bound + 128}", np.uint8(bound + 128)) if bound != extreme else ""
            for bound, extreme in ((low, LOWEST), (high, HIGHEST))
        ]
        return self._graph.node("Clip", [value, *bounds] if bounds[1] else [value, bounds[0]], f"{name}.clip")

    def _dequantised(self, value: str, name: str, exponent: int) -> str:
        return self._graph.node("DequantizeLinear", [value, self._graph.power(exponent), self._zero_point()], name)

    def _zero_point(self) -> str:
        return self._graph.constant("zero_point", ZERO_POINT)
