"""The integer network: its layers in order, checked; its shapes, bounds and canonical hash."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Final

import numpy as np

from dmsh_model.integer.bounds import Accumulator, Shape, accumulator_of, check_within, output_range
from dmsh_model.integer.layers import (
    HIGHEST,
    LOWEST,
    LOWEST_WEIGHT,
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

__all__ = ["LARGEST_EXPONENT", "IntegerNetwork", "Shape", "canonical_hash"]

_LARGEST_IMAGE: Final = 4096
LARGEST_EXPONENT: Final = 100  # of a logit: far inside float32's range, without denormals


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
                accumulators.append(accumulator_of(layer, passed, inputs))
                ranges.append(output_range(layer, passed, accumulators[-1]))
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
            check_within("size", layer.size, 1, _LARGEST_IMAGE)
            return (3, layer.size, layer.size)
        case Convolution():
            channels = _maps(inputs[0])[0]
            _check_arrays(layer, 4)
            out, per_group = layer.weight.shape[:2]
            if layer.groups < 1 or channels != per_group * layer.groups or out % layer.groups:
                raise ValueError(f"weights {list(layer.weight.shape)} in {layer.groups} groups for {channels} channels")
            return (out, *_windows(inputs[0], layer.weight.shape[2:], layer.stride, layer.padding, layer.dilation))
        case MaxPool():
            if max(layer.dilation) > min(_maps(inputs[0])[1:]):  # then its range would begin at that of the padding
                raise ValueError(f"dilation {list(layer.dilation)}: a window could see nothing but padding")
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
            if len(inputs) < 2 or len({shape[1:] for shape in inputs}) != 1:  # of one part OpenVINO makes nothing
                raise ValueError(f"cannot concatenate {', '.join(map(str, map(list, inputs)))}")
            return (sum(shape[0] for shape in inputs), *inputs[0][1:])
        case Linear() | Logits():
            _check_arrays(layer, 2)
            if inputs[0] != layer.weight.shape[1:]:
                raise ValueError(f"weights {list(layer.weight.shape)} for an input of {list(inputs[0])}")
            if isinstance(layer, Logits):
                check_within("logits", len(layer.weight), 1, MAX_BITS)
                check_within("exponent", int(layer.exponent.min()), -LARGEST_EXPONENT, LARGEST_EXPONENT)
                check_within("exponent", int(layer.exponent.max()), -LARGEST_EXPONENT, LARGEST_EXPONENT)
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
        count = space // stride[axis] + 1
        if (
            not (0 <= before < reach and 0 <= after < reach)
            or _windows_with_pixels(count, shape[1 + axis], kernel[axis], stride[axis], before, dilation[axis]) < count
        ):
            raise ValueError(f"padding {list(padding)}: a window of {reach} would see nothing but padding")
        sides.append(count)
    return sides[0], sides[1]


def _windows_with_pixels(count: int, side: int, kernel: int, stride: int, before: int, dilation: int) -> int:
    """Return how many of ``count`` windows along one axis see one of its ``side`` positions or more."""
    if dilation <= side:  # none steps over all of them
        return count
    starts = before - dilation * np.arange(kernel)  # of the windows whose n-th step falls on position 0
    first, last = np.maximum(0, -(-starts // stride)), np.minimum(count - 1, (starts + side - 1) // stride)
    return int(np.maximum(0, last - first + 1).sum())  # each sees one position at most
