"""A float graph and the scales of its tensors -> the integer network."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_export.quantise.calibration import Calibration
from dmsh_export.quantise.float_graph import (
    Add,
    Affine,
    Centre,
    Concat,
    FloatGraph,
    FloatLayer,
    GlobalMax,
    GlobalMean,
    Image,
    MaxPool,
)
from dmsh_model.integer import layers as integer
from dmsh_model.integer.bounds import FLOAT32_LIMIT, extremes
from dmsh_model.integer.layers import HIGHEST, LOWEST, MAX_SHIFT
from dmsh_model.integer.network import LARGEST_EXPONENT, IntegerNetwork
from dmsh_serving.errors import InputError

__all__ = ["Converted", "integer_from_float", "with_layers"]

_CENTRING_SHIFT = 7


@dataclass(frozen=True, eq=False)
class Converted:
    """An integer network, and per layer the size of one step in the float network's units, (C,) float64.

    Layers keep their indices in the float graph.
    """

    network: IntegerNetwork
    scales: tuple[Tensor, ...]


def integer_from_float(
    graph: FloatGraph, wanted: tuple[Tensor, ...], calibration: Calibration | None = None
) -> Converted:
    """Round ``graph`` to integers; ``wanted`` is the size of one step of each layer's output, (C,) float64.

    Pooling, addition and concatenation tie the step of their output to that of their input; they take the nearest
    possible one. With the ``calibration`` of ``graph``, the weights of an output are rounded together (see
    :mod:`rounding`) and its bias compensates the mean error that is left; without, each goes to the nearest integer.

    Raises:
        InputError: a layer that has no integer form with these scales, or a mean of too many pixels.
    """
    layers: list[integer.Layer] = []
    scales: list[Tensor] = []
    ranges: list[tuple[int, int]] = []
    for index, layer in enumerate(graph.layers):
        inputs = [scales[source] for source in layer.inputs]
        built: integer.Layer
        if isinstance(layer.operation, Affine):
            scale = torch.ones_like(wanted[index]) if index == len(graph.layers) - 1 else wanted[index]
            built = _affine(graph, index, inputs[0], scale, ranges[layer.inputs[0]], calibration)
        else:
            built, scale = _fixed(layer, graph, inputs, float(wanted[index].max()))
        layers.append(built)
        scales.append(scale)
        passed = [ranges[source] for source in layer.inputs] or [(LOWEST, HIGHEST)]
        low, high = min(low for low, _ in passed), max(high for _, high in passed)
        if isinstance(built, integer.GlobalSum):
            reached = math.prod(graph.shapes[layer.inputs[0]][1:]) * max(-low, high)
            if reached >= FLOAT32_LIMIT:
                raise InputError(
                    f"layer {layer.name}: its sum over all pixels can reach {reached:,}, and is exact below "
                    f"{FLOAT32_LIMIT:,} only: tap a later stage, or take smaller images"
                )
        ranges.append((getattr(built, "low", low), getattr(built, "high", high)))
    return Converted(IntegerNetwork(tuple(layers)), tuple(scales))


def with_layers(
    graph: FloatGraph, converted: Converted, layers: dict[int, FloatLayer], calibration: Calibration
) -> Converted:
    """Return ``converted``, which was made of ``graph``, with other weights and biases in some layers.

    Args:
        graph: the float graph.
        converted: its integer network.
        layers: by index, convolutions and linear layers of the shapes that ``graph`` has there.
        calibration: of ``graph``.
    """
    changed = FloatGraph(tuple(layers.get(index, layer) for index, layer in enumerate(graph.layers)), graph.shapes)
    built = list(converted.network.layers)
    for index, layer in layers.items():
        (source,) = layer.inputs
        scale, input_range = converted.scales[index], converted.network.ranges[source]
        built[index] = _affine(changed, index, converted.scales[source], scale, input_range, calibration)
    return Converted(IntegerNetwork(tuple(built)), converted.scales)


def _fixed(layer: FloatLayer, graph: FloatGraph, inputs: list[Tensor], wanted: float) -> tuple[integer.Layer, Tensor]:
    """Return a layer without weights and its scale: the nearest to ``wanted`` that its inputs' scales allow."""
    name = layer.name
    match layer.operation:
        case Image(size):
            return integer.Image(name, size), torch.ones(3, dtype=torch.float64)
        case Centre(mean):
            return _centring(name, torch.tensor(mean, dtype=torch.float64))
        case MaxPool(kernel, stride, padding, dilation):
            return integer.MaxPool(name, layer.inputs[0], kernel, stride, padding, dilation), inputs[0]
        case GlobalMax():
            return integer.GlobalMax(name, layer.inputs[0]), inputs[0]
        case Concat():
            return integer.Concat(name, layer.inputs), torch.cat(inputs)
        case GlobalMean():
            positions = math.prod(graph.shapes[layer.inputs[0]][1:])
            of_the_sum = inputs[0] / positions
            shift = _shift_between(float(of_the_sum.max()), wanted)
            scale = of_the_sum * 2.0**shift
            return integer.GlobalSum(name, layer.inputs[0], shift), scale
        case Add():
            left, right = (float(scale[0]) for scale in inputs)
            finer = min(left, right)
            shift = _shift_between(finer, wanted)
            steps = (round(math.log2(left / finer)), round(math.log2(right / finer)))
            scale = torch.full_like(inputs[0], finer * 2.0**shift)
            low, high = _clip(layer, scale)
            return integer.Add(name, layer.inputs[0], layer.inputs[1], *steps, shift, low, high), scale
        case Affine():
            raise ValueError("an affine layer has weights")


def _centring(name: str, mean: Tensor) -> tuple[integer.Convolution, Tensor]:
    """Return the 1x1 convolution that moves each channel's mean to 0, and its steps (3,), the finest for 0 to 255."""
    finest = torch.maximum(mean, 255 - mean) / (HIGHEST + 0.49)
    weight = torch.floor(2.0**_CENTRING_SHIFT / finest).clamp(1, HIGHEST)
    bias = ((128 - mean) * weight).round()
    convolution = integer.Convolution(
        name,
        0,
        torch.diag(weight).view(3, 3, 1, 1).to(torch.int8).numpy(),
        bias.to(torch.int32).numpy(),
        np.full(3, _CENTRING_SHIFT, np.int8),
    )
    return convolution, 2.0**_CENTRING_SHIFT / weight


def _shift_between(finer: float, coarser: float) -> int:
    return min(MAX_SHIFT, max(0, round(math.log2(coarser / finer))))


def _clip(layer: FloatLayer, scale: Tensor) -> tuple[int, int]:
    high = HIGHEST if layer.high == math.inf else min(HIGHEST, round(layer.high / float(scale.max())))
    return (0 if layer.low == 0 else LOWEST), high


def _affine(
    graph: FloatGraph,
    index: int,
    input_scale: Tensor,
    scale: Tensor,
    input_range: tuple[int, int],
    calibration: Calibration | None,
) -> integer.Convolution | integer.Linear | integer.Logits:
    layer, last = graph.layers[index], index == len(graph.layers) - 1
    affine = layer.operation
    assert isinstance(affine, Affine)
    # The weights that turn steps of the input into steps of the output.
    weight = _per_input(affine.weight, input_scale, affine.groups) / scale.view(-1, *[1] * (affine.weight.ndim - 1))
    bias = affine.bias / scale
    least, most = (-LARGEST_EXPONENT, LARGEST_EXPONENT) if last else (0, MAX_SHIFT)
    shifts = _shifts(weight, least, most)
    while True:
        rounded, corrected = _rounded(weight, shifts), bias
        if calibration:
            rounded = calibration.moments[index].rounded(weight * _power(shifts, weight.ndim), input_scale)
            error = rounded * _power(-shifts, weight.ndim) - weight
            mean = calibration.tensors[layer.inputs[0]].mean / input_scale
            corrected = bias - _per_input(error, mean, affine.groups).flatten(1).sum(1)
        whole = (corrected * 2.0 ** shifts.double()).round()
        # Below 2^24, kernels that accumulate in float32 are exact too. A channel loses at most one bit of its weights.
        over = torch.from_numpy(extremes(rounded.numpy(), whole.numpy(), *input_range)[2] >= FLOAT32_LIMIT)
        if not over.any():
            break
        if (shifts[over] <= least).any():
            raise InputError(f"layer {layer.name}: its weights times its inputs are beyond 2^24 steps of its output")
        shifts = shifts - over.to(shifts.dtype)
    arrays: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] = (
        rounded.to(torch.int8).numpy(),
        whole.to(torch.int32).numpy(),
        (-shifts if last else shifts).numpy().astype(np.int8),
    )
    source = layer.inputs[0]
    if last:
        return integer.Logits(layer.name, source, *arrays)
    low, high = _clip(layer, scale)
    if weight.ndim == 2:
        return integer.Linear(layer.name, source, *arrays, low, high)
    stride, padding, dilation, groups = affine.stride, affine.padding, affine.dilation, affine.groups
    return integer.Convolution(
        layer.name, source, *arrays, low, high, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def _per_input(weight: Tensor, factors: Tensor, groups: int) -> Tensor:
    """Multiply weights (O, C / groups, ...) by one factor per input channel, (C,)."""
    of_group = factors.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return weight * of_group.view(len(weight), -1, *[1] * (weight.ndim - 2))


def _shifts(weight: Tensor, least: int, most: int) -> Tensor:
    """Return the shift of each output channel, (O,) int64, by the smaller rounding error of two choices.

    They are the largest shift that clips no weight, and the next one, which clips some and rounds the others twice as
    finely.
    """
    flat = weight.flatten(1)
    largest = flat.abs().amax(1)
    fits = torch.where(largest > 0, torch.floor(torch.log2((HIGHEST + 0.49) / largest.clamp(min=1e-300))), most)
    choices = torch.stack([fits, fits + 1]).clamp(least, most).to(torch.int64)
    errors = torch.stack([((_rounded(flat, shift) * _power(-shift, 2) - flat) ** 2).sum(1) for shift in choices])
    return choices.gather(0, errors.argmin(0, keepdim=True))[0]


def _rounded(weight: Tensor, shifts: Tensor) -> Tensor:
    return (weight * _power(shifts, weight.ndim)).round().clamp(-HIGHEST, HIGHEST)


def _power(shifts: Tensor, rank: int) -> Tensor:
    return (2.0 ** shifts.double()).view(-1, *[1] * (rank - 1))
