"""The float network, made of the kinds of layer that the integer network has: the first half of a conversion.

The image enters as in the integer network, as its values minus 128. Normalisation is in the weights of the convolutions
that read the image, so zero padding pads with the value 128 here too, unless :class:`Centre` comes first.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Add",
    "Affine",
    "Centre",
    "Concat",
    "FloatGraph",
    "FloatLayer",
    "GlobalMax",
    "GlobalMean",
    "Image",
    "MaxPool",
    "Operation",
    "computed",
    "outputs",
    "used_layers",
]


@dataclass(frozen=True)
class Image:
    """uint8 (N, size, size, 3) -> float32 (N, 3, size, size), each value minus 128."""

    size: int


@dataclass(frozen=True)
class Centre:
    """The image minus its mean (C,), in values of 0 to 255: padding is then with the mean, as in the float network."""

    mean: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Affine:
    """A convolution, weight (O, C / groups, height, width), or a linear layer, weight (O, C); float64, bias (O,)."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def of_type(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the type and on the device of ``value``; the conversion to float32 is kept."""
        if value.dtype == torch.float32 and value.device == self.weight.device:
            return self._in_float32
        return self.weight.to(value), self.bias.to(value)

    @functools.cached_property
    def _in_float32(self) -> tuple[Tensor, Tensor]:
        return self.weight.to(torch.float32), self.bias.to(torch.float32)


@dataclass(frozen=True)
class MaxPool:
    """Sliding maximum; padding (top, left, bottom, right) never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class GlobalMax:
    """(N, C, H, W) -> (N, C)."""


@dataclass(frozen=True)
class GlobalMean:
    """(N, C, H, W) -> (N, C)."""


@dataclass(frozen=True)
class Add:
    """The sum of two tensors of one shape."""


@dataclass(frozen=True)
class Concat:
    """The channels of all inputs, one after the other."""


Operation = Image | Centre | Affine | MaxPool | GlobalMax | GlobalMean | Add | Concat


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """One operation on the outputs of earlier layers (``inputs``, indices), then a clip to ``low..high``."""

    name: str
    operation: Operation
    inputs: tuple[int, ...]
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Layers in an order of computation: the image first, the logits last."""

    layers: tuple[FloatLayer, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each layer's output for one image: (C, H, W) or (C,)."""

    def users(self, index: int) -> list[int]:
        """Return the indices of the layers that read the output of ``index``."""
        return [other for other, layer in enumerate(self.layers) if index in layer.inputs]


def used_layers(layers: list[FloatLayer]) -> tuple[FloatLayer, ...]:
    """Return the layers that the last one needs, renumbered: a backbone also computes levels that no tap reads."""
    needed = {len(layers) - 1}
    for index in reversed(range(len(layers))):
        if index in needed:
            needed.update(layers[index].inputs)
    number = {old: new for new, old in enumerate(sorted(needed))}
    return tuple(
        FloatLayer(layer.name, layer.operation, tuple(number[i] for i in layer.inputs), layer.low, layer.high)
        for index, layer in enumerate(layers)
        if index in number
    )


def outputs(graph: FloatGraph, images: npt.NDArray[np.uint8]) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, output) of every layer in order, float32; an output is freed after its last use."""
    last_use = {source: index for index, layer in enumerate(graph.layers) for source in layer.inputs}
    values: dict[int, Tensor] = {}
    for index, layer in enumerate(graph.layers):
        with torch.inference_mode():
            if isinstance(layer.operation, Image):
                value = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(torch.float32) - 128
            else:
                value = computed(layer, [values[source] for source in layer.inputs])
        values[index] = value
        yield index, value
        for source in set(layer.inputs):
            if last_use[source] == index:
                del values[source]


def computed(layer: FloatLayer, inputs: list[Tensor]) -> Tensor:
    """Return the output of a layer (not the image), in the type and on the device of its inputs."""
    value = inputs[0]
    match layer.operation:
        case Centre(mean):
            value = value + (128 - torch.tensor(mean, dtype=torch.float64)).to(value).view(-1, 1, 1)
        case Affine(_, _, stride, padding, dilation, groups) as affine:
            weight, bias = affine.of_type(value)
            if weight.ndim == 2:
                value = F.linear(value, weight, bias)
            else:
                top, left, bottom, right = padding
                if (top, left) != (bottom, right):
                    value, top, left = F.pad(value, [left, right, top, bottom]), 0, 0
                value = F.conv2d(value, weight, bias, stride, (top, left), dilation, groups)
        case MaxPool(kernel, stride, padding, dilation):
            if any(padding):
                top, left, bottom, right = padding
                value = F.pad(value, [left, right, top, bottom], value=-math.inf)
            value = F.max_pool2d(value, kernel, stride, 0, dilation)
        case GlobalMax():
            value = value.amax((2, 3))
        case GlobalMean():
            value = value.mean((2, 3))
        case Add():
            value = inputs[0] + inputs[1]
        case Concat():
            value = torch.cat(inputs, 1)
        case Image():
            raise ValueError("the image has no inputs")
    clips = layer.low > -math.inf or layer.high < math.inf
    return value.clamp_(layer.low, layer.high) if clips else value
