"""Operators of the head, from the global pooling to the code: what each means, or why it is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_export.prove.meaning import Bits, LogitsRead, Meaning, Pending, Reading, Real
from dmsh_export.prove.nodes import Node
from dmsh_model.integer.layers import GlobalMax, GlobalSum, Linear, Logits
from dmsh_serving.contract import LOGITS


def _reduce_sum(reading: Reading, node: Node) -> Meaning:
    return Pending(GlobalSum, node.name, {"source": _pooled(reading, node)})


def _reduce_max(reading: Reading, node: Node) -> Meaning:
    return Real(reading.add(node, GlobalMax(node.name, _pooled(reading, node))))


def _pooled(reading: Reading, node: Node) -> int:
    node.takes(2)
    attributes = node.attributes(keepdims=1, noop_with_empty_axes=0)
    axes = node.constant(1, "axes", np.int64)
    node.require(not attributes["keepdims"] and axes.tolist() == [2, 3], "does not reduce a feature map to a vector")
    return reading.integers(node)


def _mul(reading: Reading, node: Node) -> Meaning:
    node.takes(2)
    node.fixed()
    value = reading.meaning(node)
    if isinstance(value, Real):
        return Real(value.layer, value.exponent + node.exponent(1, "factor"))
    if not isinstance(value, Pending) or value.clipped or value.rounded:
        raise node.error("multiplies something else than the sums of a layer")
    factor = node.exponents(1, "factor") if value.channels else np.array(node.exponent(1, "factor"))
    node.require(factor.shape in ((), (value.channels,)), f"its factor has the shape {list(factor.shape)}")
    exponents = np.asarray(value.exponents) + factor
    if value.kind is not Linear or node.outputs[0] != LOGITS:
        return replace(value, exponents=exponents)
    node.require(bool((np.abs(exponents) < 128).all()), "the exponent of a logit is beyond int8")
    reading.add(node, Logits(value.node, **value.fields, exponent=exponents.astype(np.int8)))
    return LogitsRead()


def _round(reading: Reading, node: Node) -> Meaning:
    node.takes(1)
    node.fixed()
    value = reading.meaning(node)
    if not isinstance(value, Pending) or value.clipped or value.rounded:
        raise node.error("rounds something else than the sums of a layer")
    return replace(value, rounded=True)


def _gemm(reading: Reading, node: Node) -> Meaning:
    node.takes(3)
    attributes = node.attributes(alpha=1.0, beta=1.0, transA=0, transB=0)
    expected = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    node.require(attributes == expected, f"its attributes are {attributes}, not {expected}")
    weight = node.integers(node.constant(1, "weight", np.float32), "weight", np.int8)
    bias = node.integers(node.constant(2, "bias", np.float32), "bias", np.int32)
    node.require(bias.shape == weight.shape[:1], "has not one bias an output")
    return Pending(
        Linear, node.name, {"source": reading.integers(node), "weight": weight, "bias": bias}, 0, len(weight)
    )


def _greater(reading: Reading, node: Node) -> Meaning:
    node.takes(2)
    node.fixed()
    node.require(reading.meaning(node) == LogitsRead(), "thresholds something else than the logits")
    value = node.scalar(1, "threshold", np.float32)
    node.require(value == 0, f"its threshold is {value:g}, not 0")
    return Bits("above")


def _mat_mul(reading: Reading, node: Node) -> Meaning:
    node.takes(2)
    node.fixed()
    node.require(reading.meaning(node) == Bits("ones"), "multiplies something else than the bits of the code")
    logits = reading.layers[-1]
    bits = len(logits.bias) if isinstance(logits, Logits) else 0
    node.require(
        np.array_equal(node.constant(1, "packing", np.float32), _packing(bits)),
        "does not pack the code as numpy.packbits",
    )
    return Bits("packed")


def _packing(bits: int) -> npt.NDArray[np.float32]:
    """Return the matrix (K, ceil(K/8)) by which bits become bytes: row j is numpy.packbits of bit j alone."""
    return np.packbits(np.eye(bits, dtype=np.bool_), axis=1).astype(np.float32)


HEAD_OPERATORS: Final[dict[str, Callable[[Reading, Node], Meaning]]] = {
    "Gemm": _gemm, "Greater": _greater, "MatMul": _mat_mul, "Mul": _mul, "ReduceMax": _reduce_max,
    "ReduceSum": _reduce_sum, "Round": _round,
}  # fmt: skip
