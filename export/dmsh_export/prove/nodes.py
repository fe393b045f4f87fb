"""One ONNX node under strict reading: a constant that is not exactly what is asked for refuses the node."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dmsh_model.integer.network import LARGEST_EXPONENT
from dmsh_serving.errors import CheckError

__all__ = ["Array", "Node"]

Array = npt.NDArray[Any]


class Node:
    """A node and the constants of its graph. Whatever does not fit raises :class:`CheckError`, which names the node.

    Attributes:
        name: unique in the graph.
        operator: its name without the domain.
        domain: empty for ONNX's own.
        inputs: names of the tensors; empty for an optional one that is absent.
        outputs: names of the tensors.
        attributes: name -> value.
    """

    def __init__(self, proto: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
        self.name: str = proto.name
        self.operator: str = proto.op_type
        self.domain: str = proto.domain
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self._constants = constants
        names = [attribute.name for attribute in proto.attribute]
        self.require(len(set(names)) == len(names), "has an attribute twice")
        self.require(
            not any(attribute.ref_attr_name for attribute in proto.attribute), "refers to a function's attribute"
        )
        self.attributes: dict[str, Any] = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute
        }

    def error(self, message: str) -> CheckError:
        """Return an error whose message is ``message`` with the node in front."""
        return CheckError(f"node {self.name} ({self.operator}): {message}")

    def require(self, holds: bool, message: str) -> None:
        """Raise :meth:`error` unless ``holds``."""
        if not holds:
            raise self.error(message)

    def has(self, position: int) -> bool:
        """Whether an input is present."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def constant(self, position: int, what: str, dtype: Any) -> Array:
        """Return the constant at an input; its dtype must be ``dtype``."""
        tensor = self._constants.get(self.inputs[position]) if self.has(position) else None
        if tensor is None:
            raise self.error(f"its {what} is no constant of the file")
        try:
            value = numpy_helper.to_array(tensor)
        except Exception as error:  # bytes that do not fill the shape, a type that NumPy lacks, ...
            raise self.error(f"its {what} cannot be read: {error}") from error
        self.require(value.dtype == np.dtype(dtype), f"its {what} is {value.dtype}, not {np.dtype(dtype)}")
        return value

    def scalar(self, position: int, what: str, dtype: Any) -> Any:
        """Return the one number at an input, as a Python number."""
        value = self.constant(position, what, dtype)
        self.require(
            value.size == 1 and value.ndim <= 1, f"its {what} has the shape {list(value.shape)}, not that of one number"
        )
        return value.reshape(()).item()

    def exponents(self, position: int, what: str) -> npt.NDArray[np.int64]:
        """Return the exponents e of float32 values that are 2^e, |e| at most 100, in their shape."""
        values = self.constant(position, what, np.float32)
        with np.errstate(all="ignore"):
            mantissas, exponents = np.frexp(values.astype(np.float64))
        wrong = values[~(np.isfinite(values) & (mantissas == 0.5))]
        self.require(not wrong.size, f"its {what} {wrong.flat[0] if wrong.size else 0:.9g} is not a power of two")
        exponents = exponents.astype(np.int64) - 1
        far = values[np.abs(exponents) > LARGEST_EXPONENT]
        self.require(not far.size, f"its {what} {far.flat[0] if far.size else 0:.9g} is beyond 2^{LARGEST_EXPONENT}")
        return exponents

    def exponent(self, position: int, what: str) -> int:
        """Return the exponent e of one float32 value that is 2^e."""
        values = self.exponents(position, what)
        self.require(
            values.size == 1 and values.ndim <= 1,
            f"its {what} has the shape {list(values.shape)}, not that of one number",
        )
        return int(values.reshape(()))

    def integers(self, values: Array, what: str, dtype: Any) -> Array:
        """Return floats that are integers within ``dtype`` as such."""
        exact = values.astype(np.float64)
        wrong = exact[~(np.isfinite(exact) & (exact == np.rint(exact)))]
        self.require(not wrong.size, f"its {what} {wrong.flat[0] if wrong.size else 0:.9g} is no integer")
        limits = np.iinfo(dtype)
        beyond = exact[(exact < limits.min) | (exact > limits.max)]
        self.require(not beyond.size, f"its {what} {beyond.flat[0] if beyond.size else 0:.9g} is beyond {limits.dtype}")
        return exact.astype(dtype)
