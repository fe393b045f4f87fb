"""The integer network with weights that can learn: its forward pass is the integer network's own arithmetic.

Weights and biases have float masters and are rounded in every forward pass; feature maps are integers held as float32,
in which every sum is exact as long as no accumulator can reach 2^24. Backwards, rounding counts as the identity and
clipping as what it is: no gradient passes a value that was clipped (the straight-through estimator: Bengio, Leonard,
Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013, https://arxiv.org/abs/1308.3432).
Topology, shifts and clips stay as they are, so what comes out has the range and the proof of what went in.
"""

import dataclasses
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmsh_model.integer.bounds import FLOAT32_LIMIT, extremes
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
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import head, torch_padding
from dmsh_serving.errors import InputError

__all__ = ["TrainableIntegerNetwork", "Weighted"]

# One learning rate suits all masters: weights reach +-1, and a bias is a weight to an input that is always 128.
_WEIGHT_UNIT: Final = 128.0
_BIAS_UNIT: Final = 128.0 * 128.0

Weighted = Convolution | Linear | Logits


class TrainableIntegerNetwork(nn.Module):
    """Images (N, H, W, 3), whole numbers 0 to 255 of any type -> logits (N, K) float32, those of ``network()``.

    With ``head_only`` the trunk stays as it is, and the input is its pooled features (N, C) in place of images; see
    :func:`dmsh_model.integer.reference.features`.

    Raises:
        InputError: an accumulator that learns can reach 2^24, beyond which float32 is not exact.
    """

    def __init__(self, network: IntegerNetwork, *, head_only: bool = False) -> None:
        super().__init__()
        self._network = network
        self._learning = head(network) if head_only else list(range(len(network.layers)))
        self._head_only = head_only
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for index in self._learning:
            layer, bounds = network.layers[index], network.accumulators[index]
            if bounds and bounds.peak >= FLOAT32_LIMIT:
                raise InputError(
                    f"layer {layer.name}: an accumulator could reach {bounds.peak}, training in integers needs less "
                    f"than {FLOAT32_LIMIT}: make the integer checkpoint with dmsh-export quantize"
                )
            if isinstance(layer, Weighted):
                self.weights[str(index)] = nn.Parameter(torch.from_numpy(layer.weight).float() / _WEIGHT_UNIT)
                self.biases[str(index)] = nn.Parameter(torch.from_numpy(layer.bias).float() / _BIAS_UNIT)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits; fractions in ``images`` (from augmentation) are rounded first."""
        layers = self._network.layers
        if self._head_only:
            value = images.to(torch.float32)
            for index in self._learning:
                value = self._output(index, layers[index], [value])
            return value
        last_use = {source: index for index, layer in enumerate(layers) for source in sources(layer)}
        values: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            if isinstance(layer, Image):
                values[index] = images.permute(0, 3, 1, 2).to(torch.float32).round() + LOWEST
                continue
            values[index] = self._output(index, layer, [values[source] for source in sources(layer)])
            for source in set(sources(layer)):
                if last_use[source] == index:
                    del values[source]
        return values[len(layers) - 1]

    def _output(self, index: int, layer: Layer, inputs: list[Tensor]) -> Tensor:
        match layer:
            case Convolution() | Linear() | Logits():
                sums = self._sums(index, layer, inputs[0])
                if isinstance(layer, Logits):
                    return sums * _powers(layer.exponent)
                return _shifted(sums, _powers(-layer.shift), layer.low, layer.high)
            case MaxPool():
                padded = F.pad(inputs[0], torch_padding(layer.padding), value=LOWEST)
                return F.max_pool2d(padded, layer.kernel, layer.stride, 0, layer.dilation)
            case GlobalMax():
                return inputs[0].amax((2, 3))
            case GlobalSum():
                return _shifted(inputs[0].sum((2, 3)), torch.tensor([2.0**-layer.shift]), layer.low, layer.high)
            case Add():
                total = inputs[0] * 2.0**layer.left_shift + inputs[1] * 2.0**layer.right_shift
                return _shifted(total, torch.tensor([2.0**-layer.shift]), layer.low, layer.high)
            case Concat():
                return torch.cat(inputs, 1)
            case Image():
                raise ValueError("the image has no inputs")

    def _sums(self, index: int, layer: Weighted, value: Tensor) -> Tensor:
        weight, bias = self._rounded(index)
        if not isinstance(layer, Convolution):
            return F.linear(value, weight, bias)
        padded = F.pad(value, torch_padding(layer.padding)) if any(layer.padding) else value
        return F.conv2d(padded, weight, bias, layer.stride, 0, layer.dilation, layer.groups)

    def _rounded(self, index: int) -> tuple[Tensor, Tensor]:
        """Return weights and biases as whole numbers; the gradient goes to the masters as if they were not rounded."""
        return (
            _round(self.weights[str(index)] * _WEIGHT_UNIT),
            _round(self.biases[str(index)] * _BIAS_UNIT),
        )

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the masters back to where the integer network is valid: weights in int8, accumulators below 2^24."""
        for index in self._learning:
            layer = self._network.layers[index]
            if not isinstance(layer, Weighted):
                continue
            weight, bias = self.weights[str(index)], self.biases[str(index)]
            weight.clamp_(LOWEST_WEIGHT / _WEIGHT_UNIT, HIGHEST / _WEIGHT_UNIT)
            low, high = self._network.ranges[layer.source]
            while True:
                whole, biases = (value.double().numpy() for value in self._rounded(index))
                peak = torch.from_numpy(extremes(whole, biases, low, high)[2])
                if not (over := peak >= FLOAT32_LIMIT).any():
                    break
                # A channel that is at its bound shrinks as a whole; rounding may then need a second round.
                shrunk = torch.where(over, 0.99 * FLOAT32_LIMIT / peak.clamp(min=1), 1.0)
                weight.mul_(shrunk.view(-1, *[1] * (weight.ndim - 1)))
                bias.mul_(shrunk)

    @torch.no_grad()
    def network(self) -> IntegerNetwork:
        """Return the integer network whose logits the forward pass computes."""
        layers = list(self._network.layers)
        for index in self._learning:
            layer = layers[index]
            if isinstance(layer, Weighted):
                weight, bias = self._rounded(index)
                arrays: dict[str, Any] = {
                    "weight": weight.numpy().astype(np.int8),
                    "bias": bias.numpy().astype(np.int32),
                }
                layers[index] = dataclasses.replace(layer, **arrays)
        return IntegerNetwork(tuple(layers))


class _Round(torch.autograd.Function):
    """Rounds half to even; backwards the identity."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Shift(torch.autograd.Function):
    """Scales, rounds half to even and clips; backwards only what was not clipped passes, scaled."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        rounded = (sums * scale).round_()
        ctx.save_for_backward((rounded >= low) & (rounded <= high), scale)
        return rounded.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        inside, scale = ctx.saved_tensors
        return gradient * scale * inside, None, None, None


def _round(value: Tensor) -> Tensor:
    return cast(Tensor, _Round.apply(value))


def _shifted(sums: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """(N, C, ...) times a power of two (C,) or (1,), rounded and clipped: whole numbers ``low`` to ``high``."""
    shaped = scale.view(-1, *[1] * (sums.ndim - 2))
    return cast(Tensor, _Shift.apply(sums, shaped, low, high))


def _powers(exponents: np.ndarray[Any, np.dtype[np.int8]]) -> Tensor:
    return torch.ldexp(torch.ones(len(exponents)), torch.from_numpy(exponents.astype(np.int32)))
