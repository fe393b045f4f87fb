"""The integer network: its layers in order, checked; its shapes, bounds and canonical hash."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dmsh_model.integer.layers import (
    HIGHEST,
    LOWEST,
    LOWEST_WEIGHT,
    MAX_SHIFT,
    Add,
    Concat,
    Convolution,
    GlobalMax,
    GlobalSum,
    Image,
    Layer,
    Linear,
    Logits,
    MaxPool,
    sources,
)
from dmsh_serving.contract import MAX_BITS
from dmsh_serving.errors import InputError

__all__ = [
    "FLOAT32_LIMIT",
    "INT32_LIMIT",
    "LARGEST_EXPONENT",
    "Accumulator",
    "IntegerNetwork",
    "Shape",
    "canonical_hash",
]

INT32_LIMIT: Final = 2**31
FLOAT32_LIMIT: Final = 2**24  # integers below are exact in float32, and so are their sums in any order
_LARGEST_IMAGE: Final = 4096
LARGEST_EXPONENT: Final = 100  # of a logit: far inside float32's range, without denormals

Shape = tuple[int, ...]  # of one image: (C, H, W) or (C,)


class Accumulator(NamedTuple):
    """What a layer's accumulators can reach for any image, each (O,) int64 (or (1,)).

    ``lowest`` and ``highest`` include the bias; ``partial`` bounds the magnitude of every partial sum in any order.
    """

    lowest: npt.NDArray[np.int64]
    highest: npt.NDArray[np.int64]
    partial: npt.NDArray[np.int64]

    @property
    def peak(self) -> int:
        """The largest magnitude of any accumulator and partial sum."""
        return int(max(-self.lowest.min(), self.highest.max(), self.partial.max()))


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Layers in an order of computation: the first is the image, the last the logits, every other is used.

    Raises:
        InputError: the layers do not fit each other, a value is out of range, or an accumulator could reach 2^31
            (2^24 in the logits).
    """

    layers: tuple[Layer, ...]
    shapes: tuple[Shape, ...] = dataclasses.field(init=False)
    accumulators: tuple[Accumulator | None, ...] = dataclasses.field(init=False)
    """Bounds of each layer's accumulators; None for a layer that only moves values."""
    ranges: tuple[tuple[int, int], ...] = dataclasses.field(init=False)
    """(least, greatest) value of each layer's output, for any image; of the logits, that of the accumulators."""

    def __post_init__(self) -> None:
        """Infer shapes and ranges, checking every layer on the way."""
        shapes: list[Shape] = []
        accumulators: list[Accumulator | None] = []
        ranges: list[tuple[int, int]] = []
        if len(self.layers) < 2:
            raise InputError("integer network: no layers between the image and the logits")
        for index, layer in enumerate(self.layers):
            first, last = index == 0, index == len(self.layers) - 1
            if isinstance(layer, Image) != first or isinstance(layer, Logits) != last:
                raise InputError(f"{_named(index, layer)}: the image comes first, the logits last, and only there")
            if not all(0 <= source < index for source in sources(layer)):
                raise InputError(f"{_named(index, layer)}: its inputs {list(sources(layer))} are not earlier layers")
            try:
                inputs = [shapes[source] for source in sources(layer)]
                passed = [ranges[source] for source in sources(layer)]
                shapes.append(_shape(layer, inputs))
                accumulators.append(_accumulator(layer, passed, inputs))
                ranges.append(_range(layer, passed, accumulators[-1]))
            except ValueError as error:
                raise InputError(f"{_named(index, layer)}: {error}") from error
        used = {source for layer in self.layers for source in sources(layer)}
        for index, layer in enumerate(self.layers[:-1]):
            if index not in used:
                raise InputError(f"{_named(index, layer)}: no layer uses it")
        object.__setattr__(self, "shapes", tuple(shapes))
        object.__setattr__(self, "accumulators", tuple(accumulators))
        object.__setattr__(self, "ranges", tuple(ranges))

    @property
    def bits(self) -> int:
        """K, the number of logits."""
        return self.shapes[-1][0]

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.shapes[0][1]


def canonical_hash(network: IntegerNetwork) -> str:
    """Return the SHA-256 (hex) over the integers and the topology: equal for the same function written alike.

    Names and the order of independent layers do not matter, nor which side of a sum comes first.
    """
    hashes: list[str] = []
    for layer in network.layers:
        digest = hashlib.sha256()
        fields: dict[str, object] = {"kind": type(layer).__name__}
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(value, np.ndarray):
                digest.update(f"{field.name} {list(value.shape)}\n".encode())
                digest.update(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes())
            elif field.name not in ("name", "source", "left", "right", "left_shift", "right_shift", "parts"):
                fields[field.name] = value
        if isinstance(layer, Add):
            sides = ((layer.left_shift, hashes[layer.left]), (layer.right_shift, hashes[layer.right]))
            fields["inputs"] = sorted(sides)
        else:
            fields["inputs"] = [hashes[source] for source in sources(layer)]
        digest.update(json.dumps(fields, sort_keys=True).encode())
        hashes.append(digest.hexdigest())
    return hashes[-1]


def _named(index: int, layer: Layer) -> str:
    return f"layer {index} ({type(layer).__name__} {layer.name})"


def _shape(layer: Layer, inputs: list[Shape]) -> Shape:
    """Return the shape of a layer's output; ValueError says what does not fit."""
    match layer:
        case Image():
            _within("size", layer.size, 1, _LARGEST_IMAGE)
            return (3, layer.size, layer.size)
        case Convolution():
            channels = _maps(inputs[0])[0]
            _check_arrays(layer, 4)
            out, per_group = layer.weight.shape[:2]
            if layer.groups < 1 or channels != per_group * layer.groups or out % layer.groups:
                raise ValueError(f"weights {list(layer.weight.shape)} in {layer.groups} groups for {channels} channels")
            return (out, *_windows(inputs[0], layer.weight.shape[2:], layer.stride, layer.padding, layer.dilation))
        case MaxPool():
            return (
                _maps(inputs[0])[0],
                *_windows(inputs[0], layer.kernel, layer.stride, layer.padding, layer.dilation),
            )
        case GlobalMax() | GlobalSum():
            return _maps(inputs[0])[:1]
        case Add():
            if inputs[0] != inputs[1]:
                raise ValueError(f"cannot add {list(inputs[0])} and {list(inputs[1])}")
            return inputs[0]
        case Concat():
            if not inputs or len({shape[1:] for shape in inputs}) != 1:
                raise ValueError(f"cannot concatenate {', '.join(map(str, map(list, inputs)))}")
            return (sum(shape[0] for shape in inputs), *inputs[0][1:])
        case Linear() | Logits():
            _check_arrays(layer, 2)
            if inputs[0] != layer.weight.shape[1:]:
                raise ValueError(f"weights {list(layer.weight.shape)} for an input of {list(inputs[0])}")
            if isinstance(layer, Logits):
                _within("logits", len(layer.weight), 1, MAX_BITS)
                _within("exponent", int(layer.exponent.min()), -LARGEST_EXPONENT, LARGEST_EXPONENT)
                _within("exponent", int(layer.exponent.max()), -LARGEST_EXPONENT, LARGEST_EXPONENT)
            return layer.weight.shape[:1]


def _maps(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"its input {list(shape)} is no feature map [C, H, W]")
    return shape


def _check_arrays(layer: Convolution | Linear | Logits, rank: int) -> None:
    if layer.weight.dtype != np.int8 or layer.weight.ndim != rank or not layer.weight.size:
        raise ValueError(f"weights are {layer.weight.dtype} {list(layer.weight.shape)}, not int8 of {rank} dimensions")
    below = int((layer.weight < LOWEST_WEIGHT).sum())
    if below:
        raise ValueError(
            f"{below} of {layer.weight.size} weights are {LOWEST}: {LOWEST_WEIGHT} to {HIGHEST} alone is exact on "
            "every CPU (some ARM64 kernels add two products in int16)"
        )
    power = layer.exponent if isinstance(layer, Logits) else layer.shift
    for what, array, dtype in (("bias", layer.bias, np.int32), ("shift or exponent", power, np.int8)):
        if array.dtype != dtype or array.shape != layer.weight.shape[:1]:
            raise ValueError(
                f"{what} is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} [{len(layer.weight)}]"
            )


def _windows(
    shape: Shape, kernel: Shape, stride: Shape, padding: tuple[int, int, int, int], dilation: Shape
) -> tuple[int, int]:
    """Return (H', W') of a sliding window, partial windows left out."""
    sides = []
    for axis in (0, 1):
        before, after = padding[axis], padding[axis + 2]
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        space = shape[1 + axis] + before + after - reach
        if min(kernel[axis], stride[axis], dilation[axis]) < 1 or space < 0:
            raise ValueError(f"a window of {reach} on {shape[1 + axis]} positions does not fit")
        if not (0 <= before < reach and 0 <= after < reach):
            raise ValueError(f"padding {list(padding)}: a window of {reach} would see nothing but padding")
        sides.append(space // stride[axis] + 1)
    return sides[0], sides[1]


def _range(layer: Layer, inputs: list[tuple[int, int]], accumulator: Accumulator | None) -> tuple[int, int]:
    """Return the range of a layer's output; ValueError says what is out of range."""
    if isinstance(layer, Image):
        return (LOWEST, HIGHEST)
    if accumulator is None:
        return min(low for low, _ in inputs), max(high for _, high in inputs)
    limit = FLOAT32_LIMIT if isinstance(layer, Logits) else INT32_LIMIT
    if accumulator.peak >= limit:
        raise ValueError(f"an accumulator could reach {accumulator.peak}, {limit} or more is out of bounds")
    match layer:
        case Logits():
            return int(accumulator.lowest.min()), int(accumulator.highest.max())
        case Add():
            _within("left shift", max(layer.left_shift, layer.right_shift), 0, MAX_SHIFT)
            _within("smaller left shift", min(layer.left_shift, layer.right_shift), 0, 0)
            _within("shift", layer.shift, 0, MAX_SHIFT)
        case GlobalSum():
            _within("shift", layer.shift, 0, MAX_SHIFT)
        case Convolution() | Linear():
            _within("shift", int(layer.shift.min()), 0, MAX_SHIFT)
            _within("shift", int(layer.shift.max()), 0, MAX_SHIFT)
        case _:
            raise ValueError("has an accumulator and no output range")
    _within("low", layer.low, LOWEST, 0)
    _within("high", layer.high, 0, HIGHEST)
    return layer.low, layer.high


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what} = {value} must be {least} to {most}")


def _accumulator(layer: Layer, inputs: list[tuple[int, int]], shapes: list[Shape]) -> Accumulator | None:
    match layer:
        case Convolution() | Linear() | Logits():
            low, high = inputs[0]
            weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
            # Positive and negative weights reach their extremes at opposite ends of the input's range.
            positive, negative = weight.clip(min=0).sum(1), weight.clip(max=0).sum(1)
            least, greatest = positive * low + negative * high, positive * high + negative * low
            partial = np.maximum(-least, greatest) + np.abs(layer.bias.astype(np.int64))
            return Accumulator(least + layer.bias, greatest + layer.bias, partial)
        case GlobalSum():
            count = shapes[0][1] * shapes[0][2]
            return _exact(inputs[0][0] * count, inputs[0][1] * count)
        case Add():
            (left_low, left_high), (right_low, right_high) = inputs
            left, right = 1 << min(layer.left_shift, MAX_SHIFT), 1 << min(layer.right_shift, MAX_SHIFT)
            return _exact(left_low * left + right_low * right, left_high * left + right_high * right)
        case _:
            return None


def _exact(lowest: int, highest: int) -> Accumulator:
    return Accumulator(np.array([lowest]), np.array([highest]), np.array([max(-lowest, highest)]))
