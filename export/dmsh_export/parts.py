"""Where the stem, trunk and head of an encoder's graph are: what each node computes decides, names do not.

Stem: before the first convolution (cast, layout, normalisation). Head: from the global pooling, which turns a feature
map into a vector, to the logits and the code. Trunk: all between, nearly all of the arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dmsh_serving.errors import InputError

if TYPE_CHECKING:  # the process that builds an engine needs the names alone, and loads no onnx
    import onnx

__all__ = ["GraphParts", "Part", "parts_of"]

Part = Literal["stem", "trunk", "head", "edge"]

_MATRIX_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "ConvInteger"})


@dataclass(frozen=True)
class GraphParts:
    """Names of the ONNX nodes of each part; a node in none of them was added by the typed pass and is ``edge``."""

    stem: frozenset[str]
    trunk: frozenset[str]
    head: frozenset[str]

    def part_of(self, node: str) -> Part:
        """Return the part of one ONNX node."""
        if node in self.head:
            return "head"
        if node in self.trunk:
            return "trunk"
        return "stem" if node in self.stem else "edge"


def parts_of(graph: "onnx.GraphProto") -> GraphParts:
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


def _head(graph: "onnx.GraphProto") -> set[str]:
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


def _ranks(graph: "onnx.GraphProto") -> Iterator[tuple[str, int]]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            yield value.name, len(value.type.tensor_type.shape.dim)
