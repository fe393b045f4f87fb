"""The size of one step of every int8 tensor in the float network's units, chosen from the calibration."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmsh_export.quantise.calibration import Calibration, Policy, TensorStatistics
from dmsh_export.quantise.float_graph import Add, Affine, FloatGraph, GlobalMean
from dmsh_model.integer.layers import HIGHEST

__all__ = ["ScaleOptions", "added_together", "chosen_scales"]

_FINEST = 1 / 32  # least scale of a channel over that of its tensor: more would spend steps on a channel near 0
_UNITS_TRIED = 8


@dataclass(frozen=True)
class ScaleOptions:
    """How to choose the scales.

    Attributes:
        policy: which values a scale covers, see :meth:`TensorStatistics.scale`.
        equalisation: 0 gives all channels of a tensor one scale, 1 gives each its own; between them the geometric
            mean (cross-layer equalisation: Nagel et al., "Data-Free Quantization", ICCV 2019).
    """

    policy: Policy
    equalisation: float


def chosen_scales(calibration: Calibration, options: ScaleOptions) -> tuple[Tensor, ...]:
    """Return the wanted scale of every layer's output, (C,) float64 each.

    A scale may be any positive number, because the weights before and after absorb it. Only tensors that meet in an
    addition share a unit: their scales are that unit times powers of two.
    """
    graph = calibration.graph
    wanted = []
    for layer, statistics in zip(graph.layers, calibration.tensors, strict=True):
        one = min(statistics.scale(options.policy), layer.high / HIGHEST)
        scale = torch.full_like(statistics.largest, one)
        if options.equalisation and isinstance(layer.operation, Affine):
            unused = (statistics.largest / HIGHEST / scale).clamp(_FINEST, 1)
            scale = scale * unused**options.equalisation
        wanted.append(scale)
    for group in added_together(graph):
        for index, step in _of_one_unit({i: calibration.tensors[i] for i in group}, options.policy).items():
            wanted[index] = torch.full_like(wanted[index], step)
    return tuple(wanted)


def added_together(graph: FloatGraph) -> list[list[int]]:
    """Return the groups of layers whose outputs meet in additions, also through pooling and concatenation."""
    group: dict[int, int] = {}

    def root(index: int) -> int:
        while group.setdefault(index, index) != index:
            index = group[index]
        return index

    for index, layer in enumerate(graph.layers):
        if isinstance(layer.operation, Add):
            for source in layer.inputs:
                for origin in _origins(graph, source):
                    group[root(origin)] = root(index)
    found: dict[int, list[int]] = {}
    for index in list(group):
        found.setdefault(root(index), []).append(index)
    return [sorted(members) for members in found.values()]


def _origins(graph: FloatGraph, index: int) -> list[int]:
    layer = graph.layers[index]
    if isinstance(layer.operation, Affine | Add | GlobalMean):
        return [index]
    return [origin for source in layer.inputs for origin in _origins(graph, source)]


def _of_one_unit(tensors: dict[int, TensorStatistics], policy: Policy) -> dict[int, float]:
    """Return unit * 2^n for each tensor, with the unit of the smallest sum of relative errors."""

    def nearest(statistics: TensorStatistics, unit: float) -> float:
        steps = math.log2(statistics.scale(policy) / unit)
        choices = [unit * 2.0 ** math.ceil(steps), unit * 2.0 ** math.floor(steps)]
        return choices[0] if policy == "max" else min(choices, key=statistics.error)

    def total(scales: dict[int, float]) -> float:
        return sum(tensors[index].error(scale) / (tensors[index].power() or 1) for index, scale in scales.items())

    tried = [2 ** (step / _UNITS_TRIED) for step in range(_UNITS_TRIED)]
    return min(({i: nearest(tensor, unit) for i, tensor in tensors.items()} for unit in tried), key=total)
