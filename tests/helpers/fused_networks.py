"""Small integer networks whose layers a runtime may fuse in different ways: what stands in front of an addition."""

import numpy as np

from dmsh_model.config import HashConfig
from dmsh_model.integer.layers import Add, Concat, Convolution, GlobalSum, Image, Logits, MaxPool
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import IntegerDMSH

SIZE, BITS, CHANNELS = 24, 32, 16
C = CHANNELS


def convolution(random, name, source, out, channels, kernel=3, **fields):
    """A convolution whose outputs use most of the 8 bits."""
    groups, margin = fields.get("groups", 1), kernel // 2
    weight = random.integers(-127, 128, (out, channels // groups, kernel, kernel)).astype(np.int8)
    usual = int(np.log2(127 * 40 * np.sqrt(weight[0].size) / 60))
    shift = random.integers(usual, usual + 2, out).astype(np.int8)
    bias = random.integers(-3000, 3000, out).astype(np.int32)
    fields.setdefault("padding", (margin,) * 4)
    return Convolution(name, source, weight, bias, shift, **fields)


def _layers(random):
    """{name: (layers behind the stem, which is layer 1; the layers that feed the head)}."""

    def conv(name, source, out=C, channels=C, kernel=3, **fields):
        return convolution(random, name, source, out, channels, kernel, **fields)

    return {
        "two convolutions": ([conv("a", 1), conv("b", 1, kernel=1), Add("add", 2, 3, 0, 0, 1, low=0)], [4]),
        "a convolution and a skip": ([conv("a", 1), Add("add", 2, 1, 0, 1, 1, low=0)], [3]),
        "a skip and a convolution": ([conv("a", 1), Add("add", 1, 2, 1, 0, 2, low=0)], [3]),
        "a chain": (
            [
                conv("a", 1), Add("one", 2, 1, 0, 1, 1), conv("b", 3), Add("two", 4, 3, 0, 0, 1),
                conv("c", 5, kernel=1), Add("three", 6, 5, 1, 0, 1),
            ],
            [7],
        ),
        "an addition of an addition": (
            [conv("a", 1), conv("b", 1, kernel=1), Add("one", 2, 3, 0, 0, 1), Add("two", 4, 1, 0, 1, 1, low=0)], [5],
        ),
        "a convolution in two additions": ([conv("a", 1), Add("one", 2, 1, 0, 0, 2), Add("two", 3, 2, 0, 1, 1)], [4]),
        "a convolution before and behind": ([conv("a", 1), Add("one", 2, 1, 0, 0, 1), Add("two", 2, 3, 0, 0, 1)], [4]),
        "a convolution and itself": ([conv("a", 1), Add("add", 2, 2, 0, 1, 2)], [3]),
        "a depthwise convolution": ([conv("a", 1, groups=C), Add("add", 2, 1, 0, 0, 1)], [3]),
        "a grouped convolution": ([conv("a", 1, groups=4), Add("add", 2, 1, 0, 1, 1)], [3]),
        "a dilated convolution": (
            [conv("a", 1, dilation=(2, 2), padding=(2, 2, 2, 2)), Add("add", 2, 1, 0, 1, 1)], [3],
        ),
        "a max pool": ([conv("a", 1), MaxPool("pool", 2, (3, 3), (1, 1), (1,) * 4), Add("add", 3, 1, 0, 0, 1)], [4]),
        "a max pool as the skip": ([MaxPool("pool", 1, (2, 2), (2, 2)), conv("a", 2), Add("add", 3, 2, 0, 0, 0)], [4]),
        "a ReLU": ([conv("a", 1, low=0), Add("add", 2, 1, 0, 0, 1)], [3]),
        "a ReLU6": ([conv("a", 1, low=0, high=96), Add("add", 2, 1, 0, 0, 1, low=0, high=90)], [3]),
        "a concatenation": (
            [
                conv("a", 1), conv("b", 1, kernel=1, low=0), Concat("both", (2, 3)),
                conv("c", 4, channels=2 * C, kernel=1),
            ],
            [5],
        ),
        "an addition of a concatenation": (
            [
                conv("a", 1, out=C // 2), conv("b", 1, out=C // 2, kernel=1, low=0), Concat("both", (2, 3)),
                Add("add", 4, 1, 0, 0, 1),
            ],
            [5],
        ),
        "four taps": ([conv("a", 1), Add("add", 2, 1, 0, 1, 1, low=0), conv("b", 3)], [1, 2, 3, 4]),
        "no addition": ([conv("a", 1), conv("b", 2, kernel=1, low=0)], [3]),
    }  # fmt: skip


NAMES = tuple(_layers(np.random.default_rng(0)))


def model(name, seed=0):
    """The network ``name`` with random weights: a stem, the layers to be fused, sums of their outputs, a hash layer."""
    random = np.random.default_rng(seed)
    stem = convolution(random, "stem", 0, C, 3, low=0, stride=(2, 2))
    middle, taps = _layers(random)[name]
    layers = [Image("image", SIZE), stem, *middle]
    first = len(layers)
    layers += [GlobalSum(f"sum {tap}", tap, 5) for tap in taps]
    if len(taps) > 1:
        layers.append(Concat("scales", tuple(range(first, len(layers)))))
    weight = random.integers(-127, 128, (BITS, C * len(taps))).astype(np.int8)
    bias = random.integers(-99, 99, BITS).astype(np.int32)
    layers.append(Logits("hash", len(layers) - 1, weight, bias, np.zeros(BITS, np.int8)))
    return IntegerDMSH(HashConfig("vgg_small", BITS, SIZE), IntegerNetwork(tuple(layers)))
