"""An ONNX graph of either dialect -> the integer network it computes, or the first node that is outside the exact set.

Reads the graph alone. Node after node, each tensor is given a meaning (:mod:`dmsh_export.prove.meaning`); a node whose
inputs mean something else than its operator needs, or whose constants are not exact, is refused by name.
"""

from dataclasses import dataclass
from typing import Final

import onnx

from dmsh_export.graph import Dialect
from dmsh_export.prove.head import HEAD_OPERATORS
from dmsh_export.prove.meaning import Bits, LogitsRead, Reading
from dmsh_export.prove.nodes import Node
from dmsh_export.prove.trunk import TRUNK_OPERATORS
from dmsh_model.integer.network import IntegerNetwork
from dmsh_serving.contract import CODE, LOGITS
from dmsh_serving.errors import CheckError, InputError

OPERATORS: Final = {**TRUNK_OPERATORS, **HEAD_OPERATORS}
OPSETS: Final = range(18, 26)  # whose operators mean what is read here


@dataclass(frozen=True)
class ReadBack:
    """What was read: the network, whose layers are named after their nodes, and the dialect."""

    network: IntegerNetwork
    dialect: Dialect


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
    domains = [(entry.domain, entry.version) for entry in model.opset_import]
    if model.functions or model.graph.sparse_initializer or len(domains) != 1 or domains[0][1] not in OPSETS:
        raise CheckError(
            f"the model has functions, sparse constants or operator sets other than ONNX {OPSETS[0]} to {OPSETS[-1]}"
        )
    reading = Reading(model.graph)
    for proto in model.graph.node:
        node = Node(proto, reading.constants)
        read = OPERATORS.get(node.operator)
        if read is None or proto.domain:
            raise node.error(f"the operator is outside the exact set ({', '.join(sorted(OPERATORS))})")
        node.require(len(node.outputs) == 1, "has several outputs")
        reading.meanings[node.outputs[0]] = read(reading, node)
    _check_outputs(reading)
    try:
        return ReadBack(IntegerNetwork(tuple(reading.layers)), reading.dialect)
    except InputError as error:
        raise CheckError(str(error)) from error


def _check_outputs(reading: Reading) -> None:
    for node in reading.graph.node:
        if not reading.users[node.output[0]] and node.output[0] not in (LOGITS, CODE):
            raise CheckError(f"node {node.name} ({node.op_type}): nothing uses its result")
    if reading.meanings.get(LOGITS) != LogitsRead() or reading.meanings.get(CODE) != Bits("code"):
        raise CheckError(f"the outputs {LOGITS} and {CODE} are not those of an integer network: export the model again")
