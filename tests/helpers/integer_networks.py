"""Small integer networks of every layer, random or built to reach extremes, and the slow oracle of their arithmetic."""

import numpy as np

from dmsh_model.config import HashConfig
from dmsh_model.integer.layers import (
    Add,
    Concat,
    Convolution,
    GlobalMax,
    GlobalSum,
    Image,
    Linear,
    Logits,
    MaxPool,
)
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import IntegerDMSH

SIZE, BITS = 17, 11


def convolution(random, name, source, out, channels, kernel=3, *, shift=None, groups=1, **fields):
    weight = random.integers(-127, 128, (out, channels // groups, kernel, kernel)).astype(np.int8)
    bias = random.integers(-3000, 3000, out).astype(np.int32)
    shifts = random.integers(4, 10, out) if shift is None else np.full(out, shift)
    return Convolution(name, source, weight, bias, shifts.astype(np.int8), groups=groups, **fields)


def network(seed=0):
    """Every kind of layer, every option: stride, dilation, uneven padding, groups, depthwise, ReLU, ReLU6, residual."""
    random = np.random.default_rng(seed)
    layers = (
        Image("image", SIZE),
        convolution(random, "stem", 0, 8, 3, low=0, stride=(2, 1), padding=(1, 0, 1, 1)),
        convolution(random, "depthwise", 1, 8, 8, low=0, high=96, groups=8, padding=(1, 1, 1, 1)),
        convolution(random, "grouped", 2, 8, 8, groups=2, padding=(2, 2, 2, 2), dilation=(2, 2)),
        Add("residual", 3, 1, 0, 2, 1, low=0),
        MaxPool("pool", 4, (3, 2), (2, 2), padding=(1, 0, 1, 1)),
        convolution(random, "wide", 5, 4, 8, 1),
        GlobalMax("max", 6),
        GlobalSum("sum", 4, 6),
        Concat("scales", (8, 7)),
        Linear(
            "fusion",
            9,
            random.integers(-127, 128, (16, 12)).astype(np.int8),
            random.integers(-99, 99, 16).astype(np.int32),
            random.integers(5, 9, 16).astype(np.int8),
            low=0,
        ),
        Logits(
            "hash",
            10,
            random.integers(-127, 128, (BITS, 16)).astype(np.int8),
            random.integers(-99, 99, BITS).astype(np.int32),
            random.integers(-12, 3, BITS).astype(np.int8),
        ),
    )
    return IntegerNetwork(layers)


def model(seed=0):
    return IntegerDMSH(HashConfig("vgg_small", BITS, SIZE), network(seed))


def images(count, size=SIZE, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def oracle(network, images):
    """Every layer's output, int64, by plain loops over kernel positions in whole numbers."""
    outputs = []
    for layer in network.layers:
        match layer:
            case Image():
                value = images.transpose(0, 3, 1, 2).astype(np.int64) - 128
            case Convolution():
                sums = _convolved(layer, _padded(outputs[layer.source], layer.padding, 0))
                value = _divided(sums + layer.bias[:, None, None], layer.shift[:, None, None], layer.low, layer.high)
            case MaxPool():
                windows = _windows(_padded(outputs[layer.source], layer.padding, -128), layer, layer.kernel)
                value = np.max([window for _, _, window in windows], axis=0)
            case GlobalMax():
                value = outputs[layer.source].max((2, 3))
            case GlobalSum():
                value = _divided(outputs[layer.source].sum((2, 3)), layer.shift, layer.low, layer.high)
            case Add():
                total = outputs[layer.left] * 2**layer.left_shift + outputs[layer.right] * 2**layer.right_shift
                value = _divided(total, layer.shift, layer.low, layer.high)
            case Concat():
                value = np.concatenate([outputs[part] for part in layer.parts], 1)
            case Linear():
                sums = outputs[layer.source] @ layer.weight.astype(np.int64).T + layer.bias
                value = _divided(sums, layer.shift, layer.low, layer.high)
            case Logits():
                value = outputs[layer.source] @ layer.weight.astype(np.int64).T + layer.bias
        outputs.append(value)
    return outputs


def _padded(value, padding, fill):
    top, left, bottom, right = padding
    return np.pad(value, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _windows(value, layer, kernel):
    """Yield (row, column, what that kernel position sees)."""
    (down, across), (spread_down, spread_across) = layer.stride, layer.dilation
    height = (value.shape[2] - (kernel[0] - 1) * spread_down - 1) // down + 1
    width = (value.shape[3] - (kernel[1] - 1) * spread_across - 1) // across + 1
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * spread_down, column * spread_across
            yield (
                row,
                column,
                value[
                    :, :, top : top + (height - 1) * down + 1 : down, left : left + (width - 1) * across + 1 : across
                ],
            )


def _convolved(layer, value):
    weight = layer.weight.astype(np.int64)
    out, per_group = weight.shape[0] // layer.groups, weight.shape[1]
    total = 0
    for row, column, window in _windows(value, layer, weight.shape[2:]):
        parts = [
            np.einsum(
                "nchw,oc->nohw",
                window[:, group * per_group : (group + 1) * per_group],
                weight[group * out : (group + 1) * out, :, row, column],
            )
            for group in range(layer.groups)
        ]
        total = total + np.concatenate(parts, 1)
    return total


def _divided(sums, shift, low, high):
    """Divide by 2^shift rounding half to even, in whole numbers alone, then clip."""
    shift = np.broadcast_to(np.asarray(shift, np.int64), sums.shape)
    floor = sums >> shift
    twice_the_rest = 2 * (sums - (floor << shift))
    unit = np.int64(1) << shift
    up = (twice_the_rest > unit) | ((twice_the_rest == unit) & (floor % 2 == 1))
    return np.clip(floor + up, low, high)
