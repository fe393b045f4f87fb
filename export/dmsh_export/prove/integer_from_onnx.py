"""An ONNX graph of any dialect -> the integer network it computes, or the first node that is outside the exact set.

The graph is all that is read. Node after node gets a form (:mod:`dmsh_export.prove.exact_set`) and gives its result a
meaning (:mod:`dmsh_export.prove.meaning`). A node is refused by name if it has no form, if its inputs mean something
else than its operator needs, or if its constants are not exact.
"""

from dataclasses import dataclass
from typing import Final

import onnx

from dmsh_export.graph import Dialect
from dmsh_export.prove.exact_set import form_of
from dmsh_export.prove.head import HEAD_READERS
from dmsh_export.prove.meaning import Bits, LogitsRead, Reading
from dmsh_export.prove.nodes import Node
from dmsh_export.prove.trunk import TRUNK_READERS
from dmsh_model.integer.network import IntegerNetwork
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.errors import CheckError, InputError

__all__ = ["OPSETS", "READERS", "ReadBack", "integer_from_onnx"]

READERS: Final = {**TRUNK_READERS, **HEAD_READERS}  # by the name of the form
OPSETS: Final = range(18, 26)  # in these the operators of the exact set mean what is read here


@dataclass(frozen=True)
class ReadBack:
    """What was read.

    Attributes:
        network: its layers bear the names of their nodes.
        dialect: the dialect that it is written in.
        rounded: the convolutions (indices of layers) whose sums a node of their own rounds.
    """

    network: IntegerNetwork
    dialect: Dialect
    rounded: frozenset[int]


def integer_from_onnx(model: onnx.ModelProto) -> ReadBack:
    """Return the integer network that ``model`` (read by :func:`dmsh_export.graph.model_from_file`) computes.

    Raises:
        InputError: a float model.
        CheckError: names the first node that is not exact, or the layer that is out of bounds.
    """
    if not {node.op_type for node in model.graph.node} & {"QLinearConv", "QuantizeLinear"}:
        raise InputError(
            "it is a float model, whose codes no static proof covers: compare them with dmsh-export parity, or make an "
            "integer checkpoint with dmsh-export quantize and export that"
        )
    _check_file(model)
    reading = Reading(model.graph)
    for proto in model.graph.node:
        node = Node(proto, reading.constants)
        read = READERS[form_of(node, reading.dialect).name]
        reading.meanings[node.outputs[0]] = read(reading, node)
    _check_outputs(reading)
    try:
        return ReadBack(IntegerNetwork(tuple(reading.layers)), reading.dialect, frozenset(reading.rounded))
    except InputError as error:
        raise CheckError(str(error)) from error


def _check_file(model: onnx.ModelProto) -> None:
    """Refuse whatever could give the nodes another meaning than the one that is read."""
    if [entry.domain for entry in model.opset_import] != [""] or model.opset_import[0].version not in OPSETS:
        raise CheckError(f"its operator sets are not ONNX {OPSETS[0]} to {OPSETS[-1]} alone")
    if model.functions or model.training_info:
        raise CheckError("it has functions or training information, which the exact set has not")
    if model.graph.sparse_initializer:
        raise CheckError("it has sparse constants, which the exact set has not")
    names = [tensor.name for tensor in model.graph.initializer]
    computed = {name for node in model.graph.node for name in node.output}
    if len(set(names)) != len(names) or {IMAGE, *computed}.intersection(names):
        raise CheckError("a constant has the name of another tensor")


def _check_outputs(reading: Reading) -> None:
    for node in reading.graph.node:
        if not reading.users[node.output[0]] and node.output[0] not in (LOGITS, CODE):
            raise CheckError(f"node {node.name} ({node.op_type}): nothing uses its result")
    if reading.meanings.get(LOGITS) != LogitsRead() or reading.meanings.get(CODE) != Bits("code"):
        raise CheckError(f"the outputs {LOGITS} and {CODE} are not those of an integer network: export the model again")
