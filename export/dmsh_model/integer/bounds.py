"""What bounds an accumulator: the worst case of a layer over all possible images, and the limits it must keep.

Below ``FLOAT32_LIMIT`` a sum of integers is exact in float32, in any order; below ``INT32_LIMIT`` in int32.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dmsh_model.integer.layers import (
    HIGHEST,
    LOWEST,
    MAX_SHIFT,
    Add,
    Convolution,
    GlobalSum,
    Image,
    Layer,
    Linear,
    Logits,
)

__all__ = [
    "FLOAT32_LIMIT",
    "INT32_LIMIT",
    "Accumulator",
    "Shape",
    "accumulator_of",
    "check_within",
    "extremes",
    "output_range",
]

INT32_LIMIT: Final = 2**31
FLOAT32_LIMIT: Final = 2**24

Shape = tuple[int, ...]  # of one image: (C, H, W) or (C,)
_Numbers = npt.NDArray[Any]


class Accumulator(NamedTuple):
    """What a layer's accumulators can reach for any image, each (O,) int64 (or (1,)).

    ``lowest`` and ``highest`` include the bias; ``partial`` bounds the magnitude of every partial sum in any order.
    """

    lowest: npt.NDArray[np.int64]
    highest: npt.NDArray[np.int64]
    partial: npt.NDArray[np.int64]

    @property
    def peak(self) -> int:
        """The largest magnitude of any accumulator and partial sum."""
        return int(max(-self.lowest.min(), self.highest.max(), self.partial.max()))


def extremes(weight: _Numbers, bias: _Numbers, low: int, high: int) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return (lowest, highest, partial) as :class:`Accumulator` has them, for inputs from ``low`` to ``high``.

    ``weight`` (O, ...) and ``bias`` (O,) are whole numbers, int64 or float64, and so is the result, each (O,).
    """
    flat = weight.reshape(len(weight), -1)
    # Positive and negative weights reach their extremes at opposite ends of the input's range.
    positive, negative = flat.clip(min=0).sum(1), flat.clip(max=0).sum(1)
    least, greatest = positive * low + negative * high, positive * high + negative * low
    return least + bias, greatest + bias, np.maximum(-least, greatest) + np.abs(bias)


def accumulator_of(layer: Layer, inputs: list[tuple[int, int]], shapes: list[Shape]) -> Accumulator | None:
    """Return the worst case of ``layer`` from the ranges and shapes of its inputs; None if it only moves values."""
    match layer:
        case Convolution() | Linear() | Logits():
            return Accumulator(*extremes(layer.weight.astype(np.int64), layer.bias.astype(np.int64), *inputs[0]))
        case GlobalSum():
            count = shapes[0][1] * shapes[0][2]
            return _exact(inputs[0][0] * count, inputs[0][1] * count)
        case Add():
            (left_low, left_high), (right_low, right_high) = inputs
            left, right = 1 << min(layer.left_shift, MAX_SHIFT), 1 << min(layer.right_shift, MAX_SHIFT)
            return _exact(left_low * left + right_low * right, left_high * left + right_high * right)
        case _:
            return None


def _exact(lowest: int, highest: int) -> Accumulator:
    return Accumulator(np.array([lowest]), np.array([highest]), np.array([max(-lowest, highest)]))


def output_range(layer: Layer, inputs: list[tuple[int, int]], accumulator: Accumulator | None) -> tuple[int, int]:
    """Return the range of a layer's output; ValueError says what is out of range."""
    if isinstance(layer, Image):
        return (LOWEST, HIGHEST)
    if accumulator is None:
        return min(low for low, _ in inputs), max(high for _, high in inputs)
    limit = FLOAT32_LIMIT if isinstance(layer, Logits) else INT32_LIMIT
    if accumulator.peak >= limit:
        raise ValueError(f"an accumulator could reach {accumulator.peak}, {limit} or more is out of bounds")
    match layer:
        case Logits():
            return int(accumulator.lowest.min()), int(accumulator.highest.max())
        case Add():
            check_within("left shift", max(layer.left_shift, layer.right_shift), 0, MAX_SHIFT)
            check_within("smaller left shift", min(layer.left_shift, layer.right_shift), 0, 0)
            check_within("shift", layer.shift, 0, MAX_SHIFT)
        case GlobalSum():
            check_within("shift", layer.shift, 0, MAX_SHIFT)
        case Convolution() | Linear():
            check_within("shift", int(layer.shift.min()), 0, MAX_SHIFT)
            check_within("shift", int(layer.shift.max()), 0, MAX_SHIFT)
        case _:
            raise ValueError("has an accumulator and no output range")
    check_within("low", layer.low, LOWEST, 0)
    check_within("high", layer.high, 0, HIGHEST)
    return layer.low, layer.high


def check_within(what: str, value: int, least: int, most: int) -> None:
    """Raise ValueError unless ``least <= value <= most``."""
    if not least <= value <= most:
        raise ValueError(f"{what} = {value} must be {least} to {most}")
