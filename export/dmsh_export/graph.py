"""Where an exported graph's stem, trunk and head are: what each node computes decides, names do not.

Stem: before the first convolution (cast, layout, normalisation). Head: from the global pooling that turns a feature
map into a vector, to the logits and the code. Trunk: what lies between, nearly all of the arithmetic.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dmsh_export.parts import GraphParts
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.errors import InputError

Dialect = Literal["onnxruntime", "tensorrt"]  # the forms that an integer network is written in

_MATRIX_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "ConvInteger"})


def model_from_file(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file made by dmsh-export; nodes without a name get one, shapes are inferred.

    Raises:
        InputError: not a file, not ONNX, weights outside the file, or other inputs and outputs than an encoder's.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: name an ONNX model made by dmsh-export onnx")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX model: name a file made by dmsh-export onnx") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise InputError(
            f"{path}: its weights lie outside the file (ONNX external data), which is refused: export one whole file"
        )
    found = {value.name for value in (*model.graph.input, *model.graph.output)}
    if found != {IMAGE, LOGITS, CODE}:
        raise InputError(
            f"{path} is not an encoder made by dmsh-export onnx: its inputs and outputs are "
            f"{', '.join(sorted(found)) or 'none'}; expected are {IMAGE}, {LOGITS} and {CODE}"
        )
    _name_nodes(model.graph)
    return with_shapes(model, str(path))


def with_shapes(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Check ``model`` and return it with the shape and type of each tensor.

    Raises:
        InputError: the checker or the inference refuses it.
    """
    try:
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(f"{name} is not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error


def parts_of(graph: onnx.GraphProto) -> GraphParts:
    """Tell stem, trunk and head of an encoder's graph apart.

    Raises:
        InputError: no feature map is pooled into a vector on the way to the logits, or a tensor has no known shape.
    """
    head = _head(graph)
    below_a_product: set[str] = set()
    stem, trunk = set(), set()
    for node in graph.node:
        if node.name in head:
            continue
        if node.op_type in _MATRIX_PRODUCTS or below_a_product.intersection(node.input):
            below_a_product.update(node.output)
            trunk.add(node.name)
        else:
            stem.add(node.name)
    if not trunk:
        raise InputError("the graph has no convolution between image and pooled features: is it a DMSH encoder?")
    return GraphParts(frozenset(stem), frozenset(trunk), frozenset(head))


def _head(graph: onnx.GraphProto) -> set[str]:
    """Walk from the outputs to the nodes that turn a feature map (rank 4) into a vector, these included."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    ranks = dict(_ranks(graph))
    head: set[str] = set()
    waiting = [producers[value.name] for value in graph.output if value.name in producers]
    while waiting:
        node = waiting.pop()
        if node.name in head:
            continue
        head.add(node.name)
        for name in node.input:
            if not name or name in constants or name not in producers:
                continue
            source = producers[name]
            if name not in ranks:
                raise InputError(f"the operator {source.op_type} (node {source.name}) is unknown: its shape is too")
            if ranks[name] < 4:
                waiting.append(source)
    return head


def _ranks(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            yield value.name, len(value.type.tensor_type.shape.dim)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own: what is reported of a node must be found again."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the ONNX element type of each tensor whose type is known."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def metadata_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the ``metadata_props`` of a model as a dict."""
    return {entry.key: entry.value for entry in model.metadata_props}
