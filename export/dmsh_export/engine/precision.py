"""An ONNX encoder -> the same encoder with a trunk that computes in the requested type: the graph sets the precision.

Half precision (FP16, BF16): the trunk's tensors and weights; stem, pooling, fusion, hash head, threshold and packing
stay FP32, and so do inputs and outputs. The normalisation stays FP32 because it is less than a thousandth of the work
and feeds every layer; the pooling because its kernels sum in FP32 anyway, and rounding the means would add about a
tenth to the worst logit error of ResNet-50 and VGG-19.
INT8 and FP8 come as a Q/DQ graph, which a quantiser has written and this module checks.

The pass is our own because onnxruntime.transformers.float16 has no BF16, moves weights that are out of range to the
nearest value in range without an error, and adds casts around each excluded node.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dmsh_export.engine.qdq_check import check_quantised, with_plain_biases
from dmsh_export.graph import element_types, metadata_of, with_shapes
from dmsh_export.parts import GraphParts, parts_of
from dmsh_serving.contract import IMAGE, Metadata
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import CheckError, InputError

__all__ = ["HALF", "Precision", "TypedGraph", "WeightRounding", "precision_of", "typed_graph"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

ELEMENT_TYPES: dict[Precision, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
HALF: dict[Precision, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# The first operator set whose Conv and pooling take BF16.
_BF16_OPSET = 22
RECIPE = "trunk typed, FP32 from the pooling on, version 1"


@dataclass(frozen=True)
class WeightRounding:
    """The effect of rounding on the trunk's weights: counts of values, and the names of the tensors it changed most."""

    values: int
    to_infinity: int
    to_zero: int
    to_subnormal: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class TypedGraph:
    """An encoder in one precision: ``fingerprint`` names its code space, ``parent_fingerprint`` the one it came from.

    ``parent_fingerprint`` is None if the code space is unchanged (FP32). The metadata of ``model`` say the same.
    """

    model: onnx.ModelProto
    precision: Precision
    parts: GraphParts
    rounding: WeightRounding
    fingerprint: str
    parent_fingerprint: str | None


def typed_graph(model: onnx.ModelProto, precision: Precision) -> TypedGraph:
    """Return ``model`` (as :func:`dmsh_export.graph.model_from_file` reads it) in ``precision``.

    A graph that :func:`typed_graph` has already made in this precision is returned unchanged.

    Raises:
        InputError: not made by dmsh-export, a plain graph for INT8 or FP8, Q/DQ that is asymmetric or reaches the
            head, or a graph that already has another type than the requested one.
        CheckError: a weight is too large for the type.
    """
    metadata = metadata_of(model)
    said = EncoderMetadata.from_props(metadata, "the model")
    _check_type(model.graph, precision)
    parts = parts_of(model.graph)
    rounding = WeightRounding(0, 0, 0, 0, ())
    made_before = said.precision == precision
    if not made_before:
        _cast_before_transpose(model.graph)
    if precision in ("int8", "fp8"):
        check_quantised(model.graph, parts.head, ELEMENT_TYPES[precision], precision)
        with_plain_biases(model.graph)
    elif precision in HALF and not made_before:
        if precision == "bf16" and model.opset_import[0].version < _BF16_OPSET:
            model = onnx.version_converter.convert_version(model, _BF16_OPSET)
        rounding = _halve_trunk(model, parts, precision)
    del model.graph.value_info[:]
    model = with_shapes(model, f"the {precision} graph")
    parent = said.parent_fingerprint
    if made_before and parent is not None and said.fingerprint != _fingerprint(model, parent, precision):
        raise InputError(f"its fingerprint is not that of its {precision} graph: it was changed after it was made")
    if precision == "fp32" or made_before:
        return TypedGraph(model, precision, parts, rounding, said.fingerprint, said.parent_fingerprint)
    parent = said.fingerprint
    fingerprint = _fingerprint(model, parent, precision)
    kept = {key: value for key, value in metadata.items() if key.startswith("dmsh.") and key != Metadata.KNOWN_ANSWER}
    del model.metadata_props[:]
    helper.set_model_props(
        model,
        {
            **kept,
            Metadata.FINGERPRINT: fingerprint,
            Metadata.PARENT_FINGERPRINT: parent,
            Metadata.PRECISION: precision,
        },
    )
    return TypedGraph(model, precision, parts, rounding, fingerprint, parent)


def precision_of(graph: onnx.GraphProto) -> Precision:
    """Return the lowest precision that tensors of ``graph`` have."""
    present = set(element_types(graph).values())
    for node in graph.node:
        if node.op_type == "Cast":
            present.update(attribute.i for attribute in node.attribute if attribute.name == "to")
    quantises = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
    if quantises:
        return "fp8" if ELEMENT_TYPES["fp8"] in present else "int8"
    for precision in HALF:
        if ELEMENT_TYPES[precision] in present:
            return precision
    return "fp32"


def _check_type(graph: onnx.GraphProto, precision: Precision) -> None:
    found = precision_of(graph)
    if found == precision or (found == "fp32" and precision in HALF):
        return
    if precision in ("int8", "fp8"):
        raise InputError(
            f"--{precision} takes a model with QuantizeLinear/DequantizeLinear (Q/DQ) in {precision}, this one is "
            f"{found}: quantise it first, with the head (from the pooling on) left out"
        )
    raise InputError(f"the model is {found} already, which --{precision} cannot change: give the fp32 one")


def _cast_before_transpose(graph: onnx.GraphProto) -> None:
    """Turn Transpose - Cast of the image into Cast - Transpose: TensorRT takes UINT8 only at the network's edge."""
    users = [node for node in graph.node if IMAGE in node.input]
    if len(users) != 1 or users[0].op_type != "Transpose":
        return
    transpose = users[0]
    casts = [node for node in graph.node if transpose.output[0] in node.input]
    if len(casts) != 1 or casts[0].op_type != "Cast":
        return
    cast = casts[0]
    between = transpose.output[0]
    transpose.output[0], cast.input[0] = cast.output[0], IMAGE
    transpose.input[0], cast.output[0] = between, between
    nodes = list(graph.node)
    first, second = sorted((nodes.index(transpose), nodes.index(cast)))
    nodes[first], nodes[second] = _copy(cast), _copy(transpose)
    del graph.node[:]
    graph.node.extend(nodes)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _halve_trunk(model: onnx.ModelProto, parts: GraphParts, precision: Precision) -> WeightRounding:
    """Give the trunk's float tensors the half type of ``precision``, with a Cast wherever a tensor enters or leaves."""
    graph, opset, half = model.graph, model.opset_import[0].version, ELEMENT_TYPES[precision]
    types = element_types(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    trunk_made = {name for node in graph.node if node.name in parts.trunk for name in node.output}
    halved: dict[str, onnx.TensorProto] = {}
    casts: dict[str, str] = {}
    counts = _RoundingCount(HALF[precision])
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int, suffix: str) -> str:
        """Return the name of ``name`` in type ``to``, adding the Cast the first time."""
        if name not in casts:
            casts[name] = f"{name}_{suffix}"
            nodes.append(helper.make_node("Cast", [name], [casts[name]], name=f"cast_{name}_{suffix}", to=to))
        return casts[name]

    for node in graph.node:
        if node.name not in parts.trunk:
            for index, name in enumerate(node.input):
                if name in trunk_made and types[name] == TensorProto.FLOAT:
                    node.input[index] = cast(name, TensorProto.FLOAT, "fp32")
            nodes.append(node)
            continue
        takes_half = _half_inputs(node, opset, precision)
        for index, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT or name in trunk_made or not takes_half[index]:
                continue
            if name in weights:
                if name not in halved:  # weights that several nodes share are one tensor, and counted once
                    halved[name] = counts.rounded(weights[name], f"{name}_{precision}")
                node.input[index] = halved[name].name
            else:
                node.input[index] = cast(name, half, precision)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = half
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *halved.values()])
    return counts.checked(precision)


def _half_inputs(node: onnx.NodeProto, opset: int, precision: Precision) -> list[bool]:
    """Return for each input of ``node`` whether its operator takes the half type there."""
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision]
    try:
        formal = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
    except onnx.defs.SchemaError as error:
        raise InputError(
            f"the operator {node.op_type} (node {node.name}) is no ONNX operator: its types are unknown"
        ) from error
    # A variadic input is declared once, last.
    takes = [wanted in formal[min(index, len(formal) - 1)].types for index in range(len(node.input))]
    if not takes[0]:
        raise InputError(f"the operator {node.op_type} (node {node.name}) takes no {precision}: keep the model in fp32")
    return takes


class _RoundingCount:
    """Rounds weights to ``dtype`` and counts those that become infinite, 0 or subnormal."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        self.largest, self.smallest_normal = float(limits.max), float(limits.smallest_normal)
        self.values = self.to_infinity = self.to_zero = self.to_subnormal = 0
        self.worst: list[tuple[tuple[int, int, int], str]] = []

    def rounded(self, weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
        exact = numpy_helper.to_array(weight)
        with np.errstate(over="ignore", under="ignore"):
            half = exact.astype(self.dtype)
        back = half.astype(np.float32)
        infinite = int((np.isinf(back) & np.isfinite(exact)).sum())
        zero = int(((back == 0) & (exact != 0)).sum())
        subnormal = int(((back != 0) & (np.abs(back) < self.smallest_normal)).sum())
        self.values += exact.size
        self.to_infinity += infinite
        self.to_zero += zero
        self.to_subnormal += subnormal
        if infinite or zero or subnormal:
            self.worst.append(((infinite, zero, subnormal), weight.name))
            self.worst = sorted(self.worst, reverse=True)[:5]
        return numpy_helper.from_array(half, name)

    def checked(self, precision: Precision) -> WeightRounding:
        """Return the counts; raise :class:`CheckError` if a weight became infinite."""
        if self.to_infinity:
            raise CheckError(
                f"{self.to_infinity} weights are too large for {precision} (largest finite value "
                f"{self.largest:.3g}), among them of {self.worst[0][1]}: use --bf16 or --fp32"
            )
        return WeightRounding(
            self.values, self.to_infinity, self.to_zero, self.to_subnormal, tuple(name for _, name in self.worst)
        )


def _fingerprint(model: onnx.ModelProto, parent: str, precision: Precision) -> str:
    """Return the SHA-256 (hex) over parent, recipe and every byte of a typed graph: the name of its code space."""
    digest = hashlib.sha256(json.dumps([parent, precision, RECIPE]).encode())
    for chunk in _chunks(model.graph):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(graph: onnx.GraphProto) -> Iterator[bytes]:
    for node in graph.node:
        yield node.SerializeToString(deterministic=True)
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name):
        yield tensor.SerializeToString(deterministic=True)
