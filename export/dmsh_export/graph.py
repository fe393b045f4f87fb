"""ONNX files of dmsh-export: read, checked, with the shape and type of each tensor, and their metadata."""

import itertools
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.errors import InputError

Dialect = Literal["onnxruntime", "tensorrt", "openvino"]  # the forms that an integer network is written in

__all__ = [
    "Dialect",
    "bytes_of_model",
    "element_types",
    "metadata_of",
    "model_from_bytes",
    "model_from_file",
    "with_shapes",
]


def model_from_file(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file made by dmsh-export, as :func:`model_from_bytes` does."""
    return model_from_bytes(bytes_of_model(path), path)


def bytes_of_model(path: Path) -> bytes:
    """Return what the ONNX file ``path`` holds; :class:`InputError` if it is not a file."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: name an ONNX model made by dmsh-export onnx")
    return path.read_bytes()


def model_from_bytes(content: bytes, path: Path) -> onnx.ModelProto:
    """Parse and check what the ONNX file ``path`` held; nodes without a name get one, shapes are inferred.

    Raises:
        InputError: not ONNX, weights outside the file, or other inputs and outputs than an encoder's.
    """
    try:
        model = onnx.load_model_from_string(content)
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
            f"{', '.join(sorted(map(str, found))) or 'none'}; expected are {IMAGE}, {LOGITS} and {CODE}"
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
    except Exception as error:  # ONNX's own two errors, and nearly any other for a hostile file
        raise InputError(f"{name} is not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own: what is reported of a node must be found again."""
    taken: set[str] = set()
    spare = itertools.count(len(graph.node))
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        while node.name in taken:  # another node is called so in the file
            node.name = f"{node.op_type}_{next(spare)}"
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
