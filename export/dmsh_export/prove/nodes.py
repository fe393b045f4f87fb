"""One ONNX node under strict reading: every attribute and constant is asked for, and anything else refuses the node."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from dmsh_serving.errors import CheckError

Array = npt.NDArray[Any]


class Node:
    """A node and the constants of its graph; whatever does not fit raises :class:`CheckError` that names the node."""

    def __init__(self, proto: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
        self.name: str = proto.name
        self.operator: str = proto.op_type
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self._proto = proto
        self._constants = constants

    def error(self, message: str) -> CheckError:
        """Return the error that says ``message`` of this node."""
        return CheckError(f"node {self.name} ({self.operator}): {message}")

    def require(self, holds: bool, message: str) -> None:
        """Raise :meth:`error` unless ``holds``."""
        if not holds:
            raise self.error(message)

    def attributes(self, **defaults: Any) -> dict[str, Any]:
        """Return the attributes, absent ones at their default; refuse any that ``defaults`` does not name."""
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in self._proto.attribute}
        unknown = sorted(set(found) - set(defaults))
        self.require(not unknown, f"the attribute {', '.join(unknown)} is outside the exact set")
        return {**defaults, **found}

    def fixed(self, **expected: Any) -> None:
        """Refuse attributes other than these values (which are also their defaults)."""
        for name, value in self.attributes(**expected).items():
            found = value.decode() if isinstance(value, bytes) else value
            self.require(found == expected[name], f"{name} = {found}, the exact set has {name} = {expected[name]}")

    def takes(self, least: int, most: int | None = None) -> None:
        """Refuse another number of inputs."""
        self.require(least <= len(self.inputs) <= (most or least), f"has {len(self.inputs)} inputs")

    def has(self, position: int) -> bool:
        """Whether the optional input is there."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def constant(self, position: int, what: str, dtype: Any) -> Array:
        """Return the constant at an input, of ``dtype`` exactly."""
        tensor = self._constants.get(self.inputs[position]) if self.has(position) else None
        if tensor is None:
            raise self.error(f"its {what} is no constant of the file")
        value = numpy_helper.to_array(tensor)
        self.require(value.dtype == np.dtype(dtype), f"its {what} is {value.dtype}, not {np.dtype(dtype)}")
        return value

    def scalar(self, position: int, what: str, dtype: Any) -> Any:
        """Return the one number at an input, as a Python number."""
        value = self.constant(position, what, dtype)
        self.require(value.size == 1 and value.ndim <= 1, f"its {what} has the shape {list(value.shape)}, not of one")
        return value.reshape(()).item()

    def exponents(self, position: int, what: str) -> npt.NDArray[np.int64]:
        """Return e of float32 values that are 2^e, in their shape."""
        values = self.constant(position, what, np.float32)
        with np.errstate(all="ignore"):
            mantissas, exponents = np.frexp(values.astype(np.float64))
        wrong = values[~(np.isfinite(values) & (mantissas == 0.5))]
        self.require(not wrong.size, f"its {what} {wrong.flat[0] if wrong.size else 0:.9g} is not a power of two")
        return exponents.astype(np.int64) - 1

    def exponent(self, position: int, what: str) -> int:
        """Return e of one float32 value that is 2^e."""
        values = self.exponents(position, what)
        self.require(
            values.size == 1 and values.ndim <= 1, f"its {what} has the shape {list(values.shape)}, not of one"
        )
        return int(values.reshape(()))

    def integers(self, values: Array, what: str, dtype: Any) -> Array:
        """Return floats as the integers they are, within ``dtype``."""
        exact = values.astype(np.float64)
        wrong = exact[~(np.isfinite(exact) & (exact == np.rint(exact)))]
        self.require(not wrong.size, f"its {what} {wrong.flat[0] if wrong.size else 0:.9g} is no integer")
        limits = np.iinfo(dtype)
        beyond = exact[(exact < limits.min) | (exact > limits.max)]
        self.require(not beyond.size, f"its {what} {beyond.flat[0] if beyond.size else 0:.9g} is beyond {limits.dtype}")
        return exact.astype(dtype)
