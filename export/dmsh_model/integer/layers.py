"""The layers of the integer network: what each computes, exactly.

Between layers only int8 tensors flow. A layer sums products in an int32 accumulator, divides it by 2^shift rounding
half to even, and clips to ``low..high``, which lies within -128..127 (``low`` = 0 is a ReLU, ``high`` < 127 beside it
a ReLU6). The only scale is each layer's 2^-shift; the float network's own units are folded into the
weights. Anchors: Balle, Johnston, Minnen, "Integer Networks for Data Compression with Latent-Variable Models",
ICLR 2019; Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018.

``source`` is the index of an earlier layer in the network; ``name`` is for people and has no meaning.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "HIGHEST",
    "LAYER_KINDS",
    "LOWEST",
    "LOWEST_WEIGHT",
    "MAX_SHIFT",
    "Add",
    "Concat",
    "Convolution",
    "GlobalMax",
    "GlobalSum",
    "Image",
    "Int8",
    "Int32",
    "Layer",
    "Linear",
    "Logits",
    "MaxPool",
    "sources",
]

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

LOWEST: Final = -128
HIGHEST: Final = 127
# Of a weight: some ARM64 kernels add two products in int16, which 2 x (-128) x (-128) would not fit.
LOWEST_WEIGHT: Final = -127
# From here on a shifted accumulator that float32 could have rounded (2^24 and more) is beyond +-128 and is clipped.
MAX_SHIFT: Final = 16


@dataclass(frozen=True, eq=False)
class Image:
    """The image, uint8 (N, size, size, 3) -> int8 (N, 3, size, size): each value minus 128."""

    name: str
    size: int


@dataclass(frozen=True, eq=False)
class Convolution:
    """(N, C, H, W) -> (N, O, H', W'). Padding pads with 0, which in the image is the value 128.

    Attributes:
        name: for people.
        source: index of the input.
        weight: (O, C / groups, kernel height, kernel width) int8, -127 to 127.
        bias: (O,) int32, in units of the accumulator.
        shift: (O,) int8, 0 to 16.
        low: least output.
        high: greatest output.
        stride: (rows, columns).
        padding: (top, left, bottom, right).
        dilation: (rows, columns).
        groups: C for a depthwise convolution.
    """

    name: str
    source: int
    weight: Int8
    bias: Int32
    shift: Int8
    low: int = LOWEST
    high: int = HIGHEST
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Linear:
    """(N, C) -> (N, O). ``weight`` (O, C) int8, -127 to 127, ``bias`` (O,) int32, ``shift`` (O,) int8, 0 to 16."""

    name: str
    source: int
    weight: Int8
    bias: Int32
    shift: Int8
    low: int = LOWEST
    high: int = HIGHEST


@dataclass(frozen=True, eq=False)
class MaxPool:
    """(N, C, H, W) -> (N, C, H', W'). Padding, (top, left, bottom, right), never wins."""

    name: str
    source: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class GlobalMax:
    """(N, C, H, W) -> (N, C): the maximum over all positions."""

    name: str
    source: int


@dataclass(frozen=True, eq=False)
class GlobalSum:
    """(N, C, H, W) -> (N, C): the sum over all positions, shifted and clipped. The mean's 1 / HW is in the weights."""

    name: str
    source: int
    shift: int
    low: int = LOWEST
    high: int = HIGHEST


@dataclass(frozen=True, eq=False)
class Add:
    """left * 2^left_shift + right * 2^right_shift, shifted and clipped; one of the two left shifts is 0."""

    name: str
    left: int
    right: int
    left_shift: int
    right_shift: int
    shift: int
    low: int = LOWEST
    high: int = HIGHEST


@dataclass(frozen=True, eq=False)
class Concat:
    """The channels of all ``parts`` (indices of layers), one after the other."""

    name: str
    parts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Logits:
    """The last layer, (N, C) -> (N, K): logit k = (accumulator k) * 2^exponent[k], neither shifted nor clipped.

    ``weight`` (K, C) int8, ``bias`` (K,) int32, ``exponent`` (K,) int8. An accumulator is below 2^24, so that the
    logit is a float32.
    """

    name: str
    source: int
    weight: Int8
    bias: Int32
    exponent: Int8


Layer = Image | Convolution | Linear | MaxPool | GlobalMax | GlobalSum | Add | Concat | Logits
LAYER_KINDS: Final[tuple[type[Layer], ...]] = (
    Image, Convolution, Linear, MaxPool, GlobalMax, GlobalSum, Add, Concat, Logits,
)  # fmt: skip


def sources(layer: Layer) -> tuple[int, ...]:
    """Return the indices of a layer's inputs, in order."""
    match layer:
        case Image():
            return ()
        case Add():
            return (layer.left, layer.right)
        case Concat():
            return layer.parts
        case _:
            return (layer.source,)
