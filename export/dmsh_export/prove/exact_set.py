"""The exact set: every operator, number of inputs and attribute that the prover accepts, per dialect.

An attribute that a form names must be present, and any other must be absent: so no default of ONNX decides what a node
means. docs/integer.md shows the set as a table, and a test holds table and code together. What the inputs must hold is
the business of the readers in :mod:`dmsh_export.prove.trunk` and :mod:`dmsh_export.prove.head`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from onnx import TensorProto

from dmsh_export.graph import Dialect
from dmsh_export.prove.nodes import Node

__all__ = ["EXACT_SET", "Attribute", "Form", "form_of"]


@dataclass(frozen=True)
class Attribute:
    """The values that an attribute may have: ``text`` for people, ``accepts`` for the prover."""

    text: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Form:
    """One form of an operator.

    Attributes:
        operator: an operator of ONNX's own domain.
        dialects: those that have it.
        inputs: what each input is; ``?`` marks one that may be absent, ``...`` one or more of a kind.
        attributes: name -> accepted values.
        of: tells two forms of one operator apart.
    """

    operator: str
    dialects: tuple[Dialect, ...]
    inputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    of: str = ""

    @property
    def name(self) -> str:
        """Unique in the set."""
        return f"{self.operator} of {self.of}" if self.of else self.operator

    def takes(self, count: int) -> bool:
        """Whether the form can have ``count`` inputs."""
        least = sum(not name.endswith("?") for name in self.inputs)
        return least <= count and (count <= len(self.inputs) or self.inputs[-1].endswith("..."))


def form_of(node: Node, dialect: Dialect) -> Form:
    """Return the form that ``node`` has in ``dialect``.

    Raises:
        CheckError: it has none; names the node and what does not fit.
    """
    forms = [form for form in EXACT_SET if form.operator == node.operator and dialect in form.dialects]
    if node.domain or not forms:
        known = sorted({form.operator for form in EXACT_SET if dialect in form.dialects})
        operator = f"{node.domain}::{node.operator}" if node.domain else node.operator
        raise node.error(f"{operator} is outside the exact set of the {dialect} dialect ({', '.join(known)})")
    found = node.attributes
    form = next((form for form in forms if form.attributes.keys() == found.keys()), forms[0])
    for name in found:
        node.require(name in form.attributes, f"the attribute {name} is outside the exact set")
    for name, allowed in form.attributes.items():
        node.require(name in found, f"the attribute {name} is missing, the exact set has {name} = {allowed.text}")
        node.require(allowed.accepts(found[name]), f"{name} = {found[name]}, the exact set has {name} = {allowed.text}")
    node.require(
        form.takes(len(node.inputs)), f"has {len(node.inputs)} inputs, the exact set has {', '.join(form.inputs)}"
    )
    node.require(len(node.outputs) == 1, "has several outputs")
    return form


def _fixed(value: Any) -> Attribute:
    return Attribute(str(value), lambda found: bool(found == value))


def _numbers(*names: str) -> Attribute:
    """Return a list of as many integers as there are ``names``; the network itself checks what they can be."""
    return Attribute(f"[{', '.join(names)}]", lambda found: isinstance(found, list) and len(found) == len(names))


_ALL: Final[tuple[Dialect, ...]] = ("onnxruntime", "tensorrt", "openvino")
_ONNXRUNTIME: Final[tuple[Dialect, ...]] = ("onnxruntime",)
_QDQ: Final[tuple[Dialect, ...]] = ("tensorrt", "openvino")

_QUANTISED: Final = ("value", "scale", "zero point")
_WINDOW: Final = {
    "kernel_shape": _numbers("rows", "columns"),
    "strides": _numbers("rows", "columns"),
    "pads": _numbers("top", "left", "bottom", "right"),
    "dilations": _numbers("rows", "columns"),
}
_CONVOLUTION: Final = {**_WINDOW, "group": Attribute("groups", lambda found: isinstance(found, int))}
_ELEMENT_TYPES: Final = (TensorProto.FLOAT, TensorProto.UINT8)

EXACT_SET: Final = (
    Form("Add", _ALL, ("left", "right")),
    Form("Cast", _ALL, ("value",), {"to": Attribute("FLOAT or UINT8", lambda found: found in _ELEMENT_TYPES)}),
    Form("Clip", _ALL, ("value", "min", "max?")),
    Form("Concat", _ALL, ("part...",), {"axis": _fixed(1)}),
    Form("Conv", _QDQ, ("value", "weight", "bias"), _CONVOLUTION),
    Form("DequantizeLinear", _ALL, _QUANTISED),
    Form("DequantizeLinear", _QDQ, _QUANTISED, {"axis": _fixed(0)}, of="weights"),
    Form("Gemm", _ALL, ("value", "weight", "bias"), {"transB": _fixed(1)}),
    Form("Greater", _ALL, ("logits", "threshold")),
    Form("MatMul", _ALL, ("bits", "packing")),
    Form("MaxPool", _ALL, ("value",), _WINDOW),
    Form("Mul", _ALL, ("value", "factor")),
    Form(
        "QLinearConv",
        _ONNXRUNTIME,
        (*_QUANTISED, "weight", "scale", "zero point", "scale of the output", "zero point of the output", "bias"),
        _CONVOLUTION,
    ),
    Form("QuantizeLinear", _ALL, _QUANTISED),
    Form("ReduceMax", _ALL, ("value", "axes"), {"keepdims": _fixed(0)}),
    Form("ReduceSum", _ALL, ("value", "axes"), {"keepdims": _fixed(0)}),
    Form("Relu", _QDQ, ("value",)),
    Form("Round", _ALL, ("value",)),
    Form("Sub", _QDQ, ("image", "offset")),
    Form("Transpose", _ALL, ("image",), {"perm": _fixed([0, 3, 1, 2])}),
)
