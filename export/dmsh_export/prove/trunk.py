"""Readers of the operators from the image to the feature maps: what a node means, or why it is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx

from dmsh_export.prove.meaning import Bits, Meaning, Pending, Pixels, Quantised, Reading, Real, Weight
from dmsh_export.prove.nodes import Node
from dmsh_model.integer.layers import HIGHEST, LOWEST, Add, Concat, Convolution, Int8, MaxPool

__all__ = ["TRUNK_READERS"]


def _transpose(reading: Reading, node: Node) -> Meaning:
    value = reading.meaning(node)
    if value == Pixels("uint8") and reading.dialect == "onnxruntime":
        return Quantised(reading.image(node))
    if value == Pixels("uint8") and reading.dialect == "openvino":
        return Pixels("uint8 transposed")
    node.require(value == Pixels("float"), "moves something else than the image")
    return Pixels("transposed")


def _cast(reading: Reading, node: Node) -> Meaning:
    to, value = node.attributes["to"], reading.meaning(node)
    if (value, to) == (Pixels("uint8"), onnx.TensorProto.FLOAT):
        return Pixels("float")
    if (value, to) == (Pixels("uint8 transposed"), onnx.TensorProto.FLOAT):
        return Pixels("transposed")
    if (value, to) == (Bits("above"), onnx.TensorProto.FLOAT):
        return Bits("ones")
    if (value, to) == (Bits("packed"), onnx.TensorProto.UINT8):
        return Bits("code")
    raise node.error("casts something else than the image or the code")


def _sub(reading: Reading, node: Node) -> Meaning:
    node.require(reading.meaning(node) == Pixels("transposed"), "subtracts from something else than the image")
    value = node.scalar(1, "subtrahend", np.float32)
    node.require(value == 128, f"subtracts {value:g} from the image, not 128")
    return Pixels("centred")


def _quantize(reading: Reading, node: Node) -> Meaning:
    exponent = node.exponent(1, "scale")
    reading.check_zero_point(node, 2)
    value = reading.meaning(node)
    if reading.is_qdq:
        node.require(exponent == 0, f"its scale is {2.0**exponent:g}, not 1")
        if value == Pixels("centred"):
            return Quantised(reading.image(node))
    if not isinstance(value, Pending) or reading.gives_vectors(value):
        raise node.error("quantises something else than the feature maps of a layer")
    # Clipped only at scale 1: in the onnxruntime dialect nothing clips feature maps before they are quantised.
    index = reading.complete(node, replace(value, exponents=value.exponents - exponent))
    if value.rounded:
        reading.rounded.add(index)
    return Quantised(index)


def _dequantize(reading: Reading, node: Node) -> Meaning:
    reading.check_zero_point(node, 2)
    exponent = node.exponent(1, "scale")
    node.require(reading.dialect == "onnxruntime" or exponent == 0, f"its scale is {2.0**exponent:g}, not 1")
    return Real(reading.quantised(node), exponent)


def _dequantize_weights(reading: Reading, node: Node) -> Meaning:
    node.require(reading.meaning(node) is None, f"its input {node.inputs[0]} is computed, weights are constants")
    values = node.constant(0, "weight", np.int8)
    exponents = node.exponents(1, "scale")
    zero_points = node.constant(2, "zero point", np.int8)
    node.require(not zero_points.any(), "the zero point of weights must be 0")
    node.require(exponents.shape == zero_points.shape == values.shape[:1], "has not one scale per output channel")
    return Weight(values, exponents)


def _qlinear_conv(reading: Reading, node: Node) -> Meaning:
    source = reading.quantised(node)
    for position, what in ((1, "input"), (6, "output")):
        exponent = node.exponent(position, f"scale of the {what}")
        node.require(exponent == 0, f"the scale of its {what} is {2.0**exponent:g}, not 1")
        reading.check_zero_point(node, position + 1)
    weight = node.constant(3, "weight", np.int8)
    exponents = node.exponents(4, "scale of the weights")
    zero_points = node.constant(5, "zero point of the weights", np.int8)
    bias = node.constant(8, "bias", np.int32)
    node.require(not zero_points.any(), "the zero point of the weights is not 0")
    node.require(exponents.shape == zero_points.shape == weight.shape[:1], "has not one scale per output channel")
    window = _convolution_window(node, weight)
    pending = Pending(
        Convolution, node.name, {"source": source, "weight": weight, "bias": bias, **window}, exponents, len(weight)
    )
    return Quantised(reading.complete(node, pending))


def _conv(reading: Reading, node: Node) -> Meaning:
    source, weight = reading.integers(node), reading.meaning(node, 1)
    if not isinstance(weight, Weight):
        raise node.error(f"its weights {node.inputs[1]} are floats, not int8 times a power of two")
    bias = node.constant(2, "bias", np.float32).astype(np.float64)
    node.require(bias.shape == weight.exponents.shape, "has not one bias per output channel")
    units = node.integers(np.ldexp(bias, -weight.exponents), "bias, in units of the accumulator,", np.int32)
    fields = {"source": source, "weight": weight.values, "bias": units, **_convolution_window(node, weight.values)}
    return Pending(Convolution, node.name, fields, weight.exponents, len(units))


def _max_pool(reading: Reading, node: Node) -> Meaning:
    fields = {"kernel": tuple(node.attributes["kernel_shape"]), **_geometry(node)}
    if reading.dialect == "onnxruntime":
        return Quantised(reading.add(node, MaxPool(node.name, reading.quantised(node), **fields)))
    return Pending(MaxPool, node.name, {"source": reading.integers(node), **fields})


def _relu(reading: Reading, node: Node) -> Meaning:
    return _bounded(reading, node, 0, HIGHEST, of_vectors=False)


def _clip(reading: Reading, node: Node) -> Meaning:
    eight_bit = reading.dialect == "onnxruntime" and isinstance(reading.meaning(node), Quantised)
    bounds = []
    for position, what, extreme in ((1, "min", LOWEST), (2, "max", HIGHEST)):
        if node.has(position):
            value = node.scalar(position, what, np.uint8 if eight_bit else np.float32)
            node.require(np.isfinite(value) and value == np.rint(value), f"its {what} {value:g} is no integer")
            bounds.append(int(value) - 128 if eight_bit else int(value))
        else:
            bounds.append(extreme)
    low, high = bounds
    node.require(
        LOWEST <= low <= 0 <= high <= HIGHEST, f"clips to {low}..{high}: 0 must be inside, 8 bits must hold it"
    )
    if eight_bit:
        return _late_clip(reading, node, low, high)
    return _bounded(reading, node, low, high, of_vectors=node.has(1) and node.has(2))


def _bounded(reading: Reading, node: Node, low: int, high: int, *, of_vectors: bool) -> Meaning:
    """Clip maps that are not quantised yet (Q/DQ), or vectors that are rounded, which finishes their layer.

    ``of_vectors``: whether both bounds are there. Maps are clipped to 8 bits when they are quantised, vectors never.
    """
    value = reading.meaning(node)
    if isinstance(value, Pending) and not value.clipped:
        clipped = replace(value, low=low, high=high, clipped=True)
        if value.rounded and of_vectors:
            return Real(reading.complete(node, clipped))
        maps = value.kind in (Convolution, Add) and not reading.gives_vectors(value)
        if maps and reading.is_qdq and not value.rounded:
            return clipped
    raise node.error("clips something else than the result of a layer")


def _late_clip(reading: Reading, node: Node, low: int, high: int) -> Meaning:
    """Clip the 8-bit tensor of a layer, or of a max pool that is its only reader: both give the same values."""
    # A clip that changes nothing would give a layer's tensor a second name, whose readers nobody counts.
    node.require((low, high) != (LOWEST, HIGHEST), "clips nothing")
    index = target = reading.quantised(node)
    layer = reading.layers[index]
    alone = reading.users[node.inputs[0]] == 1
    if isinstance(layer, MaxPool):
        target = layer.source
        alone &= reading.users[reading.tensors[target]] == 1 and layer.dilation == (1, 1)
    clipped = reading.layers[target]
    if not isinstance(clipped, Convolution | Add) or (clipped.low, clipped.high) != (LOWEST, HIGHEST) or not alone:
        raise node.error("clips something else than the fresh result of a layer that nothing else reads")
    reading.layers[target] = replace(clipped, low=low, high=high)
    return Quantised(index)


def _concat(reading: Reading, node: Node) -> Meaning:
    positions = range(len(node.inputs))
    if reading.dialect == "onnxruntime" and isinstance(reading.meaning(node), Quantised):
        parts = tuple(reading.quantised(node, position) for position in positions)
        return Quantised(reading.add(node, Concat(node.name, parts)))
    parts = tuple(reading.integers(node, position) for position in positions)
    if all(map(reading.is_vector, parts)):
        return Real(reading.add(node, Concat(node.name, parts)))
    node.require(reading.is_qdq, "joins feature maps that are not 8-bit")
    return Pending(Concat, node.name, {"parts": parts})


def _add(reading: Reading, node: Node) -> Meaning:
    left, right = reading.real(node, 0), reading.real(node, 1)
    least = min(left.exponent, right.exponent)
    fields = {
        "left": left.layer,
        "right": right.layer,
        "left_shift": left.exponent - least,
        "right_shift": right.exponent - least,
    }
    return Pending(Add, node.name, fields, least)


def _convolution_window(node: Node, weight: Int8) -> dict[str, Any]:
    kernel = node.attributes["kernel_shape"]
    node.require(weight.ndim == 4 and kernel == list(weight.shape[2:]), f"its kernel {kernel} is not its weights'")
    return {"groups": node.attributes["group"], **_geometry(node)}


def _geometry(node: Node) -> dict[str, Any]:
    fields = {"stride": "strides", "padding": "pads", "dilation": "dilations"}
    return {field: tuple(node.attributes[name]) for field, name in fields.items()}


TRUNK_READERS: Final[dict[str, Callable[[Reading, Node], Meaning]]] = {
    "Add": _add, "Cast": _cast, "Clip": _clip, "Concat": _concat, "Conv": _conv, "DequantizeLinear": _dequantize,
    "DequantizeLinear of weights": _dequantize_weights, "MaxPool": _max_pool, "QLinearConv": _qlinear_conv,
    "QuantizeLinear": _quantize, "Relu": _relu, "Sub": _sub, "Transpose": _transpose,
}  # fmt: skip
