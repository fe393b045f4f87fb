"""The precision audit: the type in which each layer computes, against the requested one.

Before the build it reads the network that TensorRT's parser made. After the build, if a GPU can load the plan, it reads
the layers that the engine inspector names.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from dmsh_export.parts import GraphParts, Part
from dmsh_serving.errors import CheckError

if TYPE_CHECKING:
    import tensorrt

__all__ = [
    "AuditRow",
    "LayerRecord",
    "check_precision",
    "is_audited",
    "records_from_inspector",
    "records_of_network",
    "rows_of",
]


# Names of trt.DataType -> ours; the inspector has other names for some of them.
_TYPE_NAMES = {
    "FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT32": "int32",
    "INT64": "int64", "UINT8": "uint8", "BOOL": "bool", "FP32": "fp32", "FP16": "fp16", "BFLOAT16": "bf16",
}  # fmt: skip
_LOW = frozenset({"fp16", "bf16", "int8", "fp8"})
_HEAD_TYPES = frozenset({"fp32", "int32", "int64", "uint8", "bool"})  # for numbers, shapes, codes and bits
# The inspector states no type for tensors of dynamic shape, in some versions not even if the shape is set.
_UNSTATED, _UNSTATED_FORMAT = "unstated", "N/A due to dynamic shapes"
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_TYPE_IN_FORMAT = re.compile(r"\b(BFLOAT16|BF16|FP32|FLOAT|FP16|HALF|INT8|FP8|INT32|INT64|UINT8|BOOL)\b", re.IGNORECASE)


@dataclass(frozen=True)
class LayerRecord:
    """One layer: its ONNX node, the part of the encoder it belongs to, its type, and its work.

    Attributes:
        node: name of the ONNX node.
        part: of the encoder.
        type: in which it computes, such as ``fp16``.
        product: whether it is a convolution or a matrix product.
        flops: per image; a multiply-add counts as two.
    """

    node: str
    part: Part
    type: str
    product: bool
    flops: int


@dataclass(frozen=True)
class AuditRow:
    """All layers of one part that compute in one type."""

    part: Part
    type: str
    layers: int
    products: int
    flops: int


def rows_of(records: Sequence[LayerRecord]) -> list[AuditRow]:
    """Sum ``records`` by part and type, in the order of their first layers."""
    groups: dict[tuple[Part, str], list[LayerRecord]] = {}
    for record in records:
        groups.setdefault((record.part, record.type), []).append(record)
    return [
        AuditRow(part, kind, len(group), sum(record.product for record in group), sum(record.flops for record in group))
        for (part, kind), group in groups.items()
    ]


def check_precision(
    records: Sequence[LayerRecord], precision: str, source: Literal["parsed network", "engine inspector"]
) -> None:
    """Raise :class:`CheckError` unless every product of the trunk is in ``precision`` and the whole head in FP32.

    An engine may hide products in a block that it compiled as a whole, or state no type: :func:`is_audited` says
    whether this check saw anything. A parsed network shows every layer.
    """
    products = [record for record in records if record.part == "trunk" and record.product]
    unstated = {_UNSTATED} if source == "engine inspector" else set()
    wrong = [record for record in products if record.type not in {precision, *unstated}]
    low = [record for record in records if record.part == "head" and record.type not in _HEAD_TYPES | unstated]
    problems = []
    if not products and source == "parsed network":
        problems.append("no convolution of the trunk is found")
    if wrong:
        problems.append(
            f"{len(wrong)} of {len(products)} convolutions of the trunk are not {precision}, the first is "
            f"{wrong[0].node} in {wrong[0].type}"
        )
    if low:
        problems.append(f"{len(low)} layers of the head are not fp32, the first is {low[0].node} in {low[0].type}")
    if problems:
        raise CheckError(f"not the {precision} engine that was asked for ({source}): {'; '.join(problems)}")


def is_audited(records: Sequence[LayerRecord]) -> bool:
    """Whether ``records`` of an engine show products of the trunk, and the types of these and of the whole head."""
    products = [record for record in records if record.part == "trunk" and record.product]
    head = [record for record in records if record.part == "head"]
    return bool(products) and all(record.type != _UNSTATED for record in products + head)


def records_of_network(
    trt: ModuleType, network: "tensorrt.INetworkDefinition", parts: GraphParts
) -> Iterator[LayerRecord]:
    """Yield the layers that the parser made of ONNX nodes, without constants and layers that belong to no node."""
    layer: tensorrt.ILayer
    tensor: tensorrt.ITensor
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {}
    for layer in layers:
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            producers[tensor.name] = layer
    for layer in layers:
        node = _ONNX_NODE.search(layer.metadata)
        if node is None:
            continue
        product = layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
        yield LayerRecord(
            node=node.group(1),
            part=parts.part_of(node.group(1)),
            type=_compute_type(trt, layer, producers, product),
            product=product,
            flops=_flops(trt, layer) if product else 0,
        )


def _compute_type(
    trt: ModuleType, layer: "tensorrt.ILayer", producers: dict[str, "tensorrt.ILayer"], product: bool
) -> str:
    """Return the type of the output; for a product of dequantised operands, their quantised type."""
    output: tensorrt.ITensor = layer.get_output(0)
    if product:
        # A convolution whose weights are constants has one input; quantised weights are a second one.
        inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
        sources = [producers.get(tensor.name) for tensor in inputs if tensor is not None]
        if len(sources) == 2 and all(source and source.type == trt.LayerType.DEQUANTIZE for source in sources):
            dequantise: tensorrt.ILayer = sources[0]
            quantised: tensorrt.ITensor = dequantise.get_input(0)
            return _type_name(quantised.dtype.name)
    return _type_name(output.dtype.name)


def _flops(trt: ModuleType, layer: "tensorrt.ILayer") -> int:
    first: tensorrt.ITensor = layer.get_input(0)
    output: tensorrt.ITensor = layer.get_output(0)
    if layer.type == trt.LayerType.MATRIX_MULTIPLY:
        rows = _volume(output.shape[:-1])
        return 2 * _volume(output.shape) * (_volume(first.shape) // rows)
    # The bindings return a plain ILayer. Only with this class do they show the fields of a convolution.
    layer.__class__ = trt.IConvolutionLayer
    convolution: tensorrt.IConvolutionLayer = layer
    multiply_adds: int = math.prod(convolution.kernel_size_nd) * first.shape[1] // convolution.num_groups
    return 2 * _volume(output.shape) * multiply_adds


def _volume(shape: Sequence[int]) -> int:
    """Return the number of elements for one image; the batch dimension is -1."""
    return math.prod(max(1, size) for size in shape)


def _type_name(name: str) -> str:
    return _TYPE_NAMES.get(name.upper(), name.lower())


def records_from_inspector(text: str, network: Sequence[LayerRecord], parts: GraphParts) -> list[LayerRecord]:
    """Read the JSON of ``EngineInspector.get_engine_information``, built with detailed profiling verbosity.

    ``network`` tells which ONNX nodes are products. A fused layer counts as its first product, or as its first node if
    it has none. Its type is the lowest that enters or leaves a product, because casts may be fused into it. The
    inspector does not report work: ``flops`` is 0.

    Raises:
        CheckError: the text names layers without their types.
    """
    products = {record.node for record in network if record.product}
    records = []
    for layer in json.loads(text)["Layers"]:
        if not isinstance(layer, dict):
            raise CheckError(
                "the engine inspector names its layers only: the plan was built without detailed verbosity"
            )
        nodes = _ONNX_NODE.findall(layer.get("Metadata", ""))
        if not nodes:
            continue
        node = next((node for node in nodes if node in products), nodes[0])
        part, product = parts.part_of(node), node in products
        tensors = layer["Outputs"] + (layer["Inputs"] if product and part == "trunk" else [])
        records.append(LayerRecord(node, part, _lowest_type(tensors), product, flops=0))
    return records


def _lowest_type(tensors: list[dict[str, Any]]) -> str:
    formats = [str(tensor.get("Format/Datatype", "")) for tensor in tensors]
    types = [_type_name(found.group(1)) for found in map(_TYPE_IN_FORMAT.search, formats) if found]
    if not types and any(_UNSTATED_FORMAT in text for text in formats):
        return _UNSTATED
    return next((kind for kind in types if kind in _LOW), types[0] if types else "unknown")
