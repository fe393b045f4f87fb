"""The reference arithmetic of the integer network, in PyTorch, and the DMSH network made of it.

Sums of integers are exact in float32 while every partial sum is below 2^24, and in float64 below 2^53, in any order;
each layer's bound (held below 2^31 by :class:`IntegerNetwork`) says which of the two computes it. So neither batch,
threads nor kernels can change a bit.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dmsh_model.config import HashConfig
from dmsh_model.fingerprint import integer_fingerprint
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import (
    LOWEST,
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
from dmsh_model.integer.network import IntegerNetwork, canonical_hash
from dmsh_serving.checks import check_images
from dmsh_serving.codes import Codes, pack
from dmsh_serving.errors import InputError

__all__ = ["Images", "IntegerDMSH", "features", "head", "head_logits", "outputs", "run", "torch_padding"]

Images = npt.NDArray[np.uint8]
_PIXELS_AT_ONCE = 2 * 224 * 224  # measured: larger batches leave the caches and are slower


class IntegerDMSH:
    """Images UINT8 [N, H, W, 3] -> codes, the same on every machine: the face of :class:`dmsh_model.network.DMSH`.

    Attributes:
        config: config of the float network that this one was made from; its framing counts, no more.
        network: the integers.
    """

    def __init__(self, config: HashConfig, network: IntegerNetwork) -> None:
        if (config.bits, config.image_size) != (network.bits, network.image_size):
            raise InputError(
                f"config: {config.bits} bits and images of {config.image_size} pixels, but the integer network has "
                f"{network.bits} and {network.image_size}"
            )
        self.config = config
        self.network = network

    @functools.cached_property
    def fingerprint(self) -> str:
        """The name of the network's code space."""
        return integer_fingerprint(canonical_hash(self.network), self.config.framing)

    def logits(self, images: Images, batch_size: int = 64) -> npt.NDArray[np.float32]:
        """Images (N, H, W, 3) uint8 -> logits (N, K) float32, each an integer times a power of two, exact.

        Raises:
            InputError: wrong dtype or shape.
        """
        check_images(images, self.config.image_size)
        out = np.empty((len(images), self.config.bits), np.float32)
        # The batch cannot change a logit, so memory alone decides how many images go at once.
        at_once = max(1, min(batch_size, _PIXELS_AT_ONCE // self.config.image_size**2))
        for start in range(0, len(images), at_once):
            accumulators = run(self.network, images[start : start + at_once])
            out[start : start + at_once] = _logits(self.network, accumulators)
        return out

    def codes(self, images: Images, batch_size: int = 64) -> Codes:
        """Images (N, H, W, 3) uint8 -> codes (N, ceil(K/8)) uint8: the reference every artefact is held against.

        Raises:
            InputError: wrong dtype or shape.
        """
        return pack(self.logits(images, batch_size))


def run(network: IntegerNetwork, images: Images) -> npt.NDArray[np.int64]:
    """Images (N, H, W, 3) uint8 -> the accumulators (N, K) int64 of the logits."""
    last = len(network.layers) - 1
    (result,) = [value for index, value in outputs(network, images) if index == last]
    return result.numpy()


def head(network: IntegerNetwork) -> list[int]:
    """Return the indices of the fully connected layers at the end, in order; their input is the pooled features."""
    found = [len(network.layers) - 1]
    while isinstance(network.layers[before := sources(network.layers[found[0]])[0]], Linear):
        found.insert(0, before)
    return found


@torch.inference_mode()
def features(network: IntegerNetwork, images: Images) -> npt.NDArray[np.int8]:
    """Images (N, H, W, 3) uint8, N >= 1 -> the pooled features (N, C) int8 that the head takes in."""
    (source,) = sources(network.layers[head(network)[0]])
    at_once = max(1, _PIXELS_AT_ONCE // network.image_size**2)
    parts = []
    for start in range(0, len(images), at_once):
        part = outputs(network, images[start : start + at_once])
        parts.append(next(value for index, value in part if index == source).to(torch.int8).numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def head_logits(network: IntegerNetwork, pooled: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Pooled features (N, C) int8 -> logits (N, K) float32, exact: those of the images they are of."""
    value = torch.from_numpy(pooled)
    for index in head(network):
        value = _output(network, index, network.layers[index], [value], None)
    return _logits(network, value.numpy())


def _logits(network: IntegerNetwork, accumulators: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    last = network.layers[-1]
    assert isinstance(last, Logits)  # held by IntegerNetwork
    return np.ldexp(accumulators.astype(np.float32), last.exponent.astype(np.int32))


@torch.inference_mode()
def outputs(
    network: IntegerNetwork, images: Images, on_accumulator: Callable[[int, Tensor], None] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, output) of every layer in order: integers held as float32, (N, C, H, W) or (N, C); of the logits
    int64 (N, K).

    ``on_accumulator(index, values)`` sees what each convolution and linear layer rounds, in integers held as floats.
    An output is freed when the last layer that uses it has run.
    """
    last_use = {source: index for index, layer in enumerate(network.layers) for source in sources(layer)}
    values: dict[int, Tensor] = {}
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Image):
            value = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(torch.float32) + LOWEST
        else:
            inputs = [values[source] for source in sources(layer)]
            value = _output(network, index, layer, inputs, on_accumulator)
        values[index] = value
        yield index, value
        for source in set(sources(layer)):
            if last_use[source] == index:
                del values[source]


def _output(
    network: IntegerNetwork,
    index: int,
    layer: Layer,
    inputs: list[Tensor],
    on_accumulator: Callable[[int, Tensor], None] | None,
) -> Tensor:
    bounds = network.accumulators[index]
    exact = torch.float32 if bounds is None or bounds.peak < FLOAT32_LIMIT else torch.float64
    match layer:
        case Convolution() | Linear() | Logits():
            # Weights and bias already divided: a power of two changes no digit of a sum, and spares a pass over it.
            shift = np.zeros(len(layer.weight), np.int32) if isinstance(layer, Logits) else layer.shift.astype(np.int32)
            sums = _products(layer, inputs[0].to(exact), shift)
            if on_accumulator:
                on_accumulator(index, torch.ldexp(sums, torch.from_numpy(shift).view(-1, *[1] * (sums.ndim - 2))))
            if isinstance(layer, Logits):
                return sums.to(torch.int64)
            return _rounded(sums, layer.low, layer.high)
        case MaxPool():
            value = inputs[0]
            if any(layer.padding):
                value = F.pad(value, torch_padding(layer.padding), value=LOWEST)
            return F.max_pool2d(value, layer.kernel, layer.stride, 0, layer.dilation)
        case GlobalMax():
            return inputs[0].amax((2, 3))
        case GlobalSum():
            sums = inputs[0].to(exact).sum((2, 3))
            return _rounded(sums * 2.0**-layer.shift, layer.low, layer.high)
        case Add():
            left, right = (value.to(exact) for value in inputs)
            total = left * 2.0 ** (layer.left_shift - layer.shift) + right * 2.0 ** (layer.right_shift - layer.shift)
            return _rounded(total, layer.low, layer.high)
        case Concat():
            return torch.cat(inputs, 1)
        case Image():
            raise ValueError("the image has no inputs")


def _products(layer: Convolution | Linear | Logits, value: Tensor, shift: npt.NDArray[np.int32]) -> Tensor:
    """Return the accumulators over 2^shift, (O,), exactly."""
    scale = torch.ldexp(torch.ones(len(shift), dtype=value.dtype), -torch.from_numpy(shift))
    weight = torch.from_numpy(layer.weight) * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = torch.from_numpy(layer.bias) * scale
    if not isinstance(layer, Convolution):
        return F.linear(value, weight, bias)
    top, left, bottom, right = layer.padding
    if (top, left) != (bottom, right):
        value, top, left = F.pad(value, torch_padding(layer.padding)), 0, 0
    return F.conv2d(value, weight, bias, layer.stride, (top, left), layer.dilation, layer.groups)


def torch_padding(padding: tuple[int, int, int, int]) -> list[int]:
    """Return ``padding`` (top, left, bottom, right) in the order of torch's pad: left, right, top, bottom."""
    top, left, bottom, right = padding
    return [left, right, top, bottom]


def _rounded(quotients: Tensor, low: int, high: int) -> Tensor:
    """Round half to even and clip, in place where it can be; returns float32."""
    return quotients.round_().clamp_(low, high).to(torch.float32)
