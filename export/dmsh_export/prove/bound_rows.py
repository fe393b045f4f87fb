"""The bounds of a network's accumulators as a certificate lists them; :mod:`dmsh_model.integer.bounds` makes them."""

from dataclasses import dataclass

from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import Add, Convolution, GlobalSum, Layer, Linear, Logits
from dmsh_model.integer.network import IntegerNetwork

__all__ = ["LayerBound", "bounds_of"]


@dataclass(frozen=True)
class LayerBound:
    """The worst case of one layer with an accumulator, over all possible images.

    Attributes:
        node: name of its main node.
        kind: class of the layer.
        lowest: least value of an accumulator with its bias.
        highest: greatest value of an accumulator with its bias.
        peak: largest magnitude of an accumulator and of every partial sum, in any order.
        shifts: (least, greatest) of its output channels; of the logits, their exponents.
        low: least value of its output.
        high: greatest value of its output.
    """

    node: str
    kind: str
    lowest: int
    highest: int
    peak: int
    shifts: tuple[int, int]
    low: int
    high: int

    @property
    def below_float32(self) -> bool:
        """Whether every partial sum is below 2^24, so that float32 accumulation is exact too."""
        return self.peak < FLOAT32_LIMIT


def bounds_of(network: IntegerNetwork) -> list[LayerBound]:
    """Return the bound of each layer of ``network`` that has an accumulator."""
    bounds = []
    for index, layer in enumerate(network.layers):
        accumulator = network.accumulators[index]
        if accumulator is None:
            continue
        shifts = _shifts(layer)
        low, high = network.ranges[index]
        lowest, highest = int(accumulator.lowest.min()), int(accumulator.highest.max())
        kind = type(layer).__name__
        bounds.append(LayerBound(layer.name, kind, lowest, highest, accumulator.peak, shifts, low, high))
    return bounds


def _shifts(layer: Layer) -> tuple[int, int]:
    match layer:
        case Convolution() | Linear():
            return int(layer.shift.min()), int(layer.shift.max())
        case Logits():
            return int(layer.exponent.min()), int(layer.exponent.max())
        case GlobalSum() | Add():
            return layer.shift, layer.shift
        case _:
            raise TypeError(f"{type(layer).__name__} has no shift")
