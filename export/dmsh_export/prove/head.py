"""Readers of the head's operators, from the global pooling to the code: what a node means, or why it is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_export.prove.meaning import Bits, LogitsRead, Meaning, Pending, Reading, Real
from dmsh_export.prove.nodes import Node
from dmsh_model.integer.layers import Add, Convolution, GlobalMax, GlobalSum, Linear, Logits
from dmsh_serving.contract import LOGITS

__all__ = ["HEAD_READERS"]


def _reduce_sum(reading: Reading, node: Node) -> Meaning:
    return Pending(GlobalSum, node.name, {"source": _pooled(reading, node)})


def _reduce_max(reading: Reading, node: Node) -> Meaning:
    return Real(reading.add(node, GlobalMax(node.name, _pooled(reading, node))))


def _pooled(reading: Reading, node: Node) -> int:
    axes = node.constant(1, "axes", np.int64)
    node.require(axes.tolist() == [2, 3], "does not reduce a feature map to a vector")
    return reading.integers(node)


def _mul(reading: Reading, node: Node) -> Meaning:
    value = reading.meaning(node)
    if isinstance(value, Real):
        return Real(reading.integers(node), node.exponent(1, "factor"))
    scales = isinstance(value, Pending) and (reading.gives_vectors(value) or (value.kind is Add and reading.is_qdq))
    if not isinstance(value, Pending) or not scales or value.clipped or value.rounded:
        raise node.error("multiplies something else than the sums of a layer")
    # Once only: two factors whose product is small could overflow float32 on the way.
    node.require(not np.any(value.exponents), "multiplies what has a factor already")
    # A factor per output is one per channel of (N, O) alone; along a feature map it would be one per column.
    exponents = node.exponents(1, "factor") if value.kind is Linear else np.array(node.exponent(1, "factor"))
    node.require(exponents.shape in ((), (value.channels,)), f"its factor has the shape {list(exponents.shape)}")
    if value.kind is not Linear or node.outputs[0] != LOGITS:
        return replace(value, exponents=exponents)
    exponents = np.broadcast_to(exponents, (value.channels,))
    reading.add(node, Logits(value.node, **value.fields, exponent=exponents.astype(np.int8)))
    return LogitsRead()


def _round(reading: Reading, node: Node) -> Meaning:
    value = reading.meaning(node)
    if isinstance(value, Pending) and not value.rounded:
        # Maps may be clipped before: a clip to whole numbers and a rounding do not mind their order.
        if value.kind is Convolution and reading.dialect == "openvino":
            return replace(value, rounded=True)
        if reading.gives_vectors(value) and not value.clipped:
            return replace(value, rounded=True)
    maps = " or of a convolution" if reading.dialect == "openvino" else ""
    raise node.error(f"rounds something else than the sums of a layer of the head{maps}")


def _gemm(reading: Reading, node: Node) -> Meaning:
    weight = node.integers(node.constant(1, "weight", np.float32), "weight", np.int8)
    bias = node.integers(node.constant(2, "bias", np.float32), "bias", np.int32)
    node.require(bias.shape == weight.shape[:1], "has not one bias per output")
    return Pending(
        Linear, node.name, {"source": reading.integers(node), "weight": weight, "bias": bias}, 0, len(weight)
    )


def _greater(reading: Reading, node: Node) -> Meaning:
    node.require(reading.meaning(node) == LogitsRead(), "thresholds something else than the logits")
    value = node.scalar(1, "threshold", np.float32)
    node.require(value == 0, f"its threshold is {value:g}, not 0")
    return Bits("above")


def _mat_mul(reading: Reading, node: Node) -> Meaning:
    node.require(reading.meaning(node) == Bits("ones"), "multiplies something else than the bits of the code")
    bits = next(len(layer.bias) for layer in reading.layers if isinstance(layer, Logits))  # they were thresholded
    node.require(
        np.array_equal(node.constant(1, "packing", np.float32), _packing(bits)),
        "does not pack the code as numpy.packbits",
    )
    return Bits("packed")


def _packing(bits: int) -> npt.NDArray[np.float32]:
    """Return the matrix (K, ceil(K/8)) by which bits become bytes: row j is numpy.packbits of bit j alone."""
    return np.packbits(np.eye(bits, dtype=np.bool_), axis=1).astype(np.float32)


HEAD_READERS: Final[dict[str, Callable[[Reading, Node], Meaning]]] = {
    "Gemm": _gemm, "Greater": _greater, "MatMul": _mat_mul, "Mul": _mul, "ReduceMax": _reduce_max,
    "ReduceSum": _reduce_sum, "Round": _round,
}  # fmt: skip
