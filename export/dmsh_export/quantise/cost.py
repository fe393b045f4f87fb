"""The cost of a quantisation, measured on held-out images: per layer, and in the codes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.batches import Images, Sample, batch_size
from dmsh_export.quantise.float_graph import FloatGraph
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.integer import reference
from dmsh_model.integer.layers import Logits
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.codes import pack, unpack

__all__ = ["CodeCost", "LayerCost", "code_cost", "decibels", "layer_costs", "signal_to_noise_db"]


@dataclass(frozen=True)
class LayerCost:
    """One layer of the integer network on held-out images.

    Attributes:
        name: its name in the float network.
        kind: class of the layer, such as ``Convolution``.
        scale: size of one step of its output in the float network's units; of the channel with the largest.
        clipped_share: share of the float network's values beyond the layer's range.
        signal_to_noise_db: its output against the float network's; infinite if they are equal.
        accumulator_bits: log2 of the largest magnitude that its accumulator can reach; None without one.
    """

    name: str
    kind: str
    scale: float
    clipped_share: float
    signal_to_noise_db: float
    accumulator_bits: float | None


@dataclass(frozen=True)
class CodeCost:
    """Codes of held-out images: the integer network's against the float network's.

    For mAP, half of the images are queries and the other half the database. It is None if the images have no labels;
    a folder of class folders gives labels.
    """

    images: int
    bits_compared: int
    equal_bits_share: float
    logits_signal_to_noise_db: float
    float_map: float | None
    integer_map: float | None


def layer_costs(
    graph: FloatGraph, found: IntegerDMSH, scales: tuple[Tensor, ...], images: Images
) -> tuple[LayerCost, ...]:
    """Compare every layer's output with the float graph's; ``scales`` holds the size of one step per layer, (C,)."""
    network = found.network
    count = len(network.layers)
    signal, noise, clipped, values = [0.0] * count, [0.0] * count, [0] * count, [0] * count
    at_once = batch_size(network.image_size)
    for batch in (images[start : start + at_once] for start in range(0, len(images), at_once)):
        pairs = zip(floats.outputs(graph, batch), reference.outputs(network, batch), strict=True)
        for (index, wanted), (_, steps) in pairs:
            scale = scales[index].to(torch.float32).view(-1, *[1] * (wanted.ndim - 2))
            if isinstance(last := network.layers[index], Logits):
                steps = torch.ldexp(steps.to(torch.float32), torch.from_numpy(last.exponent))
            else:  # logits are never clipped
                low, high = network.ranges[index]
                beyond = torch.count_nonzero(wanted > (high + 0.5) * scale)
                clipped[index] += int(beyond + torch.count_nonzero(wanted < (low - 0.5) * scale))
            signal[index] += _power(wanted)
            noise[index] += _power(torch.addcmul(wanted, steps, scale, value=-1))
            values[index] += wanted.numel()
    costs = []
    for index, layer in enumerate(network.layers):
        bounds = network.accumulators[index]
        costs.append(
            LayerCost(
                layer.name,
                type(layer).__name__,
                float(scales[index].max()),
                clipped[index] / values[index],
                decibels(signal[index], noise[index]),
                math.log2(bounds.peak) if bounds and bounds.peak else None,
            )
        )
    return tuple(costs)


def _power(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2  # the sum in float32 is wrong by 0.001 dB


def code_cost(model: DMSH, integer: IntegerDMSH, sample: Sample) -> CodeCost:
    """Compare codes and logits with the float network's; the first folder of each name is its class, for mAP."""
    images = sample.images()
    expected, found = model.logits(images, batch_size(model.config.image_size)), integer.logits(images)
    bits = model.config.bits
    codes = (pack(expected), pack(found))
    equal = float((unpack(codes[0], bits) == unpack(codes[1], bits)).mean())
    classes = [name.split("/", 1)[0] for name in sample.names]
    precision: list[float | None] = [None, None]
    if all("/" in name for name in sample.names) and len(set(classes)) > 1:
        labels = np.unique(np.array(classes), return_inverse=True)[1].astype(np.int64)
        half = len(images) // 2
        precision = [mean_average_precision(c[:half], c[half:], labels[:half], labels[half:]) for c in codes]
    ratio = signal_to_noise_db(expected.astype(np.float64), found)
    return CodeCost(len(images), len(images) * bits, equal, ratio, precision[0], precision[1])


def signal_to_noise_db(expected: npt.NDArray[np.float64], found: npt.NDArray[np.floating[Any]]) -> float:
    """Return the signal-to-noise ratio of ``found`` in dB; the difference from ``expected`` is the noise."""
    return decibels(float((expected**2).sum()), float(((found - expected) ** 2).sum()))


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) of two powers; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
