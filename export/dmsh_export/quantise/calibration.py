"""What calibration images say of every tensor of a float graph, gathered in one pass and flat memory."""

import math
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_export.quantise.float_graph import FloatGraph, outputs
from dmsh_model.integer.layers import HIGHEST
from dmsh_serving.errors import InputError

Policy = Literal["max", "percentile", "mse"]
POLICIES: Final[tuple[Policy, ...]] = ("mse", "percentile", "max")
PERCENTILE: Final = 0.9999

_BINS = 4096
_SAMPLES_AN_IMAGE = 8192  # of one tensor: the histogram needs no more, the maximum sees every value
_STEPS_AN_OCTAVE, _OCTAVES = 8, 5  # of the scales tried for the smallest error


class TensorStatistics:
    """Running statistics of one tensor: per channel mean and largest magnitude, a histogram of the magnitudes.

    The histogram covers 0 to a power of two; a larger value doubles the range and merges bins in pairs. Exact zeros
    are counted apart: every scale represents them without error.
    """

    def __init__(self, channels: int) -> None:
        self.largest = torch.zeros(channels, dtype=torch.float64)
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._positions = 0
        self._counts = np.zeros(_BINS, np.int64)
        self._top = 0.0
        self._zeros = 0

    def add(self, values: Tensor) -> None:
        """Take in a batch, float32 (N, C, ...).

        Raises:
            InputError: a value is infinite or no number.
        """
        places = (0, *range(2, values.ndim))
        lowest, highest = values.amin(places).double(), values.amax(places).double()
        if not (lowest.isfinite() & highest.isfinite()).all():
            raise InputError("it gives values that are infinite or no numbers: train the network again")
        self.largest = torch.maximum(self.largest, torch.maximum(-lowest, highest))
        # Of one image in float32, ten times as fast; of all in float64.
        of_images = values.sum(places[1:]) if values.ndim > 2 else values
        self._sum += of_images.sum(0, dtype=torch.float64)
        self._positions += values.numel() // values.shape[1]
        an_image = values.numel() // len(values)
        step = max(1, math.ceil(an_image / _SAMPLES_AN_IMAGE))
        while math.gcd(step, an_image) > 1:  # else it would keep to some of the channels, or columns
            step += 1
        self._add_magnitudes(_in_memory_order(values)[::step].abs().numpy())

    def _add_magnitudes(self, magnitudes: npt.NDArray[np.float32]) -> None:
        magnitudes = magnitudes[magnitudes > 0]
        if not len(magnitudes):
            return
        top = 2.0 ** math.ceil(math.log2(float(magnitudes.max())))
        if top > self._top:
            if self._top:
                merged = min(_BINS, round(top / self._top))
                self._counts = np.pad(self._counts.reshape(-1, merged).sum(1), (0, _BINS - _BINS // merged))
            self._top = top
        self._counts += np.histogram(magnitudes, _BINS, (0, self._top))[0]

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        return self._sum / max(1, self._positions)

    def power(self) -> float:
        """Mean square of the values that are not 0, up to the histogram's resolution."""
        return float((self._counts * self._centres() ** 2).sum() / max(1, self._counts.sum()))

    def error(self, scale: float) -> float:
        """Return the mean square error that ``scale`` (the value of one step, 127 at most) gives, zeros apart."""
        centres = self._centres()
        clipped = centres > (HIGHEST + 0.5) * scale
        rounding = float(self._counts[~clipped].sum()) * scale**2 / 12
        clipping = float((self._counts[clipped] * (centres[clipped] - HIGHEST * scale) ** 2).sum())
        return (rounding + clipping) / max(1, int(self._counts.sum()))

    def scale(self, policy: Policy) -> float:
        """Return the scale that covers the largest value, all but 0.01% of the values, or gives the least error."""
        largest = float(self.largest.max()) / HIGHEST
        if not largest:
            return 1.0  # a dead tensor: any scale holds its zeros
        if policy == "max":
            return largest
        if policy == "percentile":
            share = np.cumsum(self._counts) / max(1, self._counts.sum())
            bin_ = int(np.searchsorted(share, PERCENTILE))
            return min(largest, (bin_ + 1) * self._top / _BINS / HIGHEST)
        candidates = [largest * 2 ** (-step / _STEPS_AN_OCTAVE) for step in range(_OCTAVES * _STEPS_AN_OCTAVE)]
        return min(candidates, key=self.error)

    def _centres(self) -> npt.NDArray[np.float64]:
        return (np.arange(_BINS, dtype=np.float64) + 0.5) * (self._top / _BINS)


def _in_memory_order(values: Tensor) -> Tensor:
    """Return all values as one dimension, as they lie in memory where they lie without gaps: that copies nothing."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.flatten()


class Calibration:
    """The statistics of every layer's output."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.tensors = tuple(TensorStatistics(shape[0]) for shape in graph.shapes)

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Run a batch (N, H, W, 3) uint8 through the float graph and take in what every layer gives.

        Raises:
            InputError: a layer gives a value that is infinite or no number.
        """
        for index, value in outputs(self.graph, images):
            try:
                self.tensors[index].add(value)
            except InputError as error:
                raise InputError(f"layer {self.graph.layers[index].name} of the float network: {error}") from error
