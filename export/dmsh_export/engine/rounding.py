"""A half-precision graph as FP32 arithmetic that rounds after each operation: what ONNX Runtime can run on a CPU.

ONNX Runtime's CPU provider has few FP16 kernels and no BF16 ones. Given an FP16 graph it computes in FP32 and drops
the rounding between operations as "precision free" (core/optimizer/insert_cast_transformer.cc), so what it shows is
the rounding of the weights alone. It keeps casts that the graph itself has. GPU kernels also round once per
operation, after a sum in FP32; fused ones round less often. ONNX Runtime runs an FP8 Q/DQ graph only without
optimisation: its optimiser fuses FP8 into operators that do not support it.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dmsh_export.graph import element_types, metadata_of, model_from_file, with_shapes
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.errors import InputError

__all__ = ["Runnable", "rounding_graph", "runnable", "with_known_answer"]

_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# These return values that they were given, so there is nothing to round.
_EXACT = frozenset({"Relu", "MaxPool", "Transpose", "Reshape", "Flatten", "Identity", "Concat"})


@dataclass(frozen=True)
class Runnable:
    """A file that ONNX Runtime computes with every rounding of the graph, and whether its optimiser may change it."""

    path: Path
    optimise: bool


@contextlib.contextmanager
def runnable(path: Path) -> Iterator[Runnable]:
    """Yield a file that ONNX Runtime can run: ``path`` itself, or if it is half precision, its rounding graph.

    Raises:
        InputError: as :func:`dmsh_export.graph.model_from_file`.
    """
    model = model_from_file(path) if path.is_file() else None
    if model is None or not is_half(model.graph):
        yield Runnable(path, optimise=model is None or not _is_fp8(model.graph))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(rounding_graph(model).SerializeToString())
        yield Runnable(copy, optimise=True)


def is_half(graph: onnx.GraphProto) -> bool:
    """Whether any tensor of ``graph`` is FP16 or BF16."""
    return any(kind in _HALF_TYPES for kind in element_types(graph).values())


def _is_fp8(graph: onnx.GraphProto) -> bool:
    return TensorProto.FLOAT8E4M3FN in element_types(graph).values()


def rounding_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with FP32 in place of FP16 and BF16, and each result rounded to the type it had."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    graph = rounded.graph
    types = element_types(graph)
    for tensor in graph.initializer:
        if tensor.data_type in _HALF_TYPES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        half = next((types[name] for name in node.output if types.get(name) in _HALF_TYPES), None)
        nodes.append(node)
        if half is None or node.op_type in _EXACT:
            continue
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            exact, low = f"{name}_exact", f"{name}_rounded"
            node.output[index] = exact
            nodes.append(helper.make_node("Cast", [exact], [low], name=f"round_{name}", to=half))
            nodes.append(helper.make_node("Cast", [low], [name], name=f"widen_{name}", to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return with_shapes(rounded, "the rounding graph")


def with_known_answer(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """Return ``model`` with the images of the known answer in ``source`` and the codes that ``model`` gives them.

    Raises:
        InputError: ONNX Runtime cannot run the model, or ``source`` carries no known answer.
    """
    answer = metadata_of(model_from_file(source)).get(Metadata.KNOWN_ANSWER)
    if answer is None:
        raise InputError(f"{source} carries no known answer: export the model again")
    images, _ = known_answer.load(answer)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / source.name
        file.write_bytes(model.SerializeToString())
        with (
            runnable(file) as runs,
            OnnxEncoder(runs.path, optimise=runs.optimise, check_known_answer=False) as encoder,
        ):
            codes = encoder.infer(images).checked().code
    answered = onnx.ModelProto()
    answered.CopyFrom(model)
    kept = {key: value for key, value in metadata_of(model).items() if key != Metadata.KNOWN_ANSWER}
    del answered.metadata_props[:]
    helper.set_model_props(answered, {**kept, Metadata.KNOWN_ANSWER: known_answer.dump(images, codes)})
    return answered
