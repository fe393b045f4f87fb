"""The head, fitted again to what the integer trunk really gives.

Rounding in the trunk shifts, scales and mixes its pooled features, and most of that repeats from image to image. The
fully connected layers behind them (laterals and fusion folded into one, then the hash layer) can take it back: ridge
regression moves their weights so that the integer trunk's features give the float network's values, then
:mod:`.follow` moves the integers. No labels are needed. One image of five judges by the relaxed codes tanh(logits) of
the integer head: no step is taken that does not bring them closer.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.batches import Images, batch_size
from dmsh_export.quantise.calibration import Calibration
from dmsh_export.quantise.cost import signal_to_noise_db
from dmsh_export.quantise.float_graph import Affine, FloatGraph
from dmsh_export.quantise.follow import followed
from dmsh_export.quantise.integer_from_float import Converted, with_layers
from dmsh_model.integer import reference

__all__ = ["STRENGTHS", "Refit", "refitted"]

STRENGTHS: Final = (0.03, 0.1, 0.3, 1.0, 10.0)
"""How strongly a weight is held where it was, as a share of its input's variance."""
_JUDGED_EVERY = 5


@dataclass(frozen=True)
class Refit:
    """What refitting the head gave.

    Attributes:
        images: how many images the head was fitted to.
        strength: how strongly weights were held, one of :data:`STRENGTHS`; None if no regression came closer.
        followed: whether the integers were moved after that.
        before_db: signal to noise of the relaxed codes of the judging images, against the float network's, dB.
        after_db: the same with the head that was chosen.
    """

    images: int
    strength: float | None
    followed: bool
    before_db: float
    after_db: float


def refitted(
    graph: FloatGraph, converted: Converted, calibration: Calibration, target: FloatGraph, images: Images
) -> tuple[Converted, Refit]:
    """Return the network with the best head found, and what it gave.

    Args:
        graph: what ``converted`` was made of.
        converted: the integer network.
        calibration: of ``graph``.
        target: the float network to follow; its last layers are those of ``graph``.
        images: (N, H, W, 3) uint8, N >= 10, in random order; none that the result is measured on.
    """
    head = _head(graph)
    source = graph.layers[head[0]].inputs[0]
    wanted = _features(target, images).double()
    steps = reference.features(converted.network, images)
    found = torch.from_numpy(steps).double() * converted.scales[source]
    judging = np.arange(len(images)) % _JUDGED_EVERY == _JUDGED_EVERY - 1
    logits = _forward(graph, head, wanted)[-1].numpy()

    def quality(candidate: Converted) -> float:
        relaxed = np.tanh(reference.head_logits(candidate.network, steps[judging]))
        return signal_to_noise_db(np.tanh(logits[judging]), relaxed)

    fitting = torch.from_numpy(~judging)
    candidates: list[tuple[float | None, Converted]] = [(None, converted)]
    for strength in STRENGTHS:
        layers = _fitted(graph, head, found[fitting], wanted[fitting], strength)
        candidates.append((strength, with_layers(graph, converted, layers, calibration)))
    qualities = [quality(candidate) for _, candidate in candidates]
    best = max(range(len(candidates)), key=qualities.__getitem__)  # of equals the first: the head as it was
    strength_chosen, chosen = candidates[best]
    reached = qualities[best]
    moved = dataclasses.replace(chosen, network=followed(chosen.network, steps[~judging], logits[~judging]))
    closer = quality(moved) > reached
    if closer:
        chosen, reached = moved, quality(moved)
    return chosen, Refit(int((~judging).sum()), strength_chosen, closer, qualities[0], reached)


def _head(graph: FloatGraph) -> list[int]:
    """Return the fully connected layers at the end, in order."""
    found = [len(graph.layers) - 1]
    while _is_linear(graph, before := graph.layers[found[0]].inputs[0]):
        found.insert(0, before)
    return found


def _is_linear(graph: FloatGraph, index: int) -> bool:
    operation = graph.layers[index].operation
    return isinstance(operation, Affine) and operation.weight.ndim == 2


def _features(graph: FloatGraph, images: Images) -> Tensor:
    """Return what the head takes in, (N, C)."""
    (source,) = graph.layers[_head(graph)[0]].inputs
    at_once = batch_size(images.shape[1])
    parts = [floats.outputs(graph, images[start : start + at_once]) for start in range(0, len(images), at_once)]
    return torch.cat([next(value for index, value in part if index == source) for part in parts])


def _forward(graph: FloatGraph, head: list[int], value: Tensor) -> list[Tensor]:
    """Return the output of each layer of the head for its input (N, C) float64."""
    outputs = []
    for index in head:
        value = floats.computed(graph.layers[index], [value])
        outputs.append(value)
    return outputs


def _fitted(
    graph: FloatGraph, head: list[int], found: Tensor, wanted: Tensor, strength: float
) -> dict[int, floats.FloatLayer]:
    """Return the layers of the head, fitted one after the other so that ``found`` gives what ``wanted`` gives."""
    layers: dict[int, floats.FloatLayer] = {}
    for index in head:
        layer = graph.layers[index]
        affine = layer.operation
        assert isinstance(affine, Affine)  # held by _head
        target = wanted @ affine.weight.T + affine.bias
        layers[index] = dataclasses.replace(layer, operation=_ridge(affine, found, target, strength))
        found, wanted = floats.computed(layers[index], [found]), floats.computed(layer, [wanted])
    return layers


def _ridge(affine: Affine, values: Tensor, target: Tensor, strength: float) -> Affine:
    """Return the affine map of ``values`` (N, C) nearest to ``target`` (N, O), not far from ``affine``; float64."""
    mean, spread = values.mean(0), values.std(0)
    spread = torch.where(spread > 0, spread, 1.0)  # an input that never varies keeps its weights
    standard = (values - mean) / spread
    missing = target - (values @ affine.weight.T + affine.bias)
    offset = missing.mean(0)
    products = standard.T @ standard / len(values)
    held = strength * torch.eye(len(mean), dtype=torch.float64)
    change = torch.linalg.solve(products + held, standard.T @ (missing - offset) / len(values)).T / spread
    return dataclasses.replace(affine, weight=affine.weight + change, bias=affine.bias + offset - change @ mean)
