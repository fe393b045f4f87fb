"""Statistics of every tensor of a float graph over the calibration images, in one pass and constant memory."""

import math
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmsh_export.quantise.float_graph import Affine, FloatGraph, outputs
from dmsh_export.quantise.rounding import InputMoments
from dmsh_model.integer.layers import HIGHEST
from dmsh_serving.errors import InputError

__all__ = ["POLICIES", "Calibration", "Policy", "TensorStatistics"]

Policy = Literal["max", "percentile", "mse"]
POLICIES: Final[tuple[Policy, ...]] = ("mse", "percentile", "max")
PERCENTILE: Final = 0.9999

_BINS = 4096
_SAMPLES_PER_IMAGE = 8192  # values of one tensor that enter its histogram; the maximum sees every value
_STEPS_PER_OCTAVE, _OCTAVES = 8, 5  # the scales that policy "mse" tries


class TensorStatistics:
    """Running statistics of one tensor: mean and largest magnitude per channel, and a histogram of magnitudes.

    The histogram covers 0 to a power of two; a larger value doubles the range and merges bins in pairs. It leaves out
    exact zeros, which every scale represents without error.
    """

    def __init__(self, channels: int) -> None:
        self.largest = torch.zeros(channels, dtype=torch.float64)
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._positions = 0
        self._counts = np.zeros(_BINS, np.int64)
        self._top = 0.0
        self._zeros = 0

    def add(self, values: Tensor) -> None:
        """Add a batch, float32 (N, C, ...).

        Raises:
            InputError: a value is infinite or NaN.
        """
        places = (0, *range(2, values.ndim))
        lowest, highest = values.amin(places).double(), values.amax(places).double()
        if not (lowest.isfinite() & highest.isfinite()).all():
            raise InputError("it gives values that are infinite or NaN: train the network again")
        self.largest = torch.maximum(self.largest, torch.maximum(-lowest, highest))
        # The sum of one image in float32, which is ten times as fast; the sum over all images in float64.
        of_images = values.sum(places[1:]) if values.ndim > 2 else values
        self._sum += of_images.sum(0, dtype=torch.float64)
        self._positions += values.numel() // values.shape[1]
        an_image = values.numel() // len(values)
        step = max(1, math.ceil(an_image / _SAMPLES_PER_IMAGE))
        while math.gcd(step, an_image) > 1:  # a common factor would visit only some channels, or columns
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
        """Return the mean square of the values that are not 0, at the histogram's resolution."""
        return float((self._counts * self._centres() ** 2).sum() / max(1, self._counts.sum()))

    def error(self, scale: float) -> float:
        """Return the mean square error of rounding to at most 127 steps of size ``scale``; without exact zeros."""
        centres = self._centres()
        clipped = centres > (HIGHEST + 0.5) * scale
        rounding = float(self._counts[~clipped].sum()) * scale**2 / 12
        clipping = float((self._counts[clipped] * (centres[clipped] - HIGHEST * scale) ** 2).sum())
        return (rounding + clipping) / max(1, int(self._counts.sum()))

    def scale(self, policy: Policy) -> float:
        """Return the size of one step: ``max`` covers every value, ``percentile`` 99.99%, ``mse`` errs least."""
        largest = float(self.largest.max()) / HIGHEST
        if not largest:
            return 1.0  # every value is 0, which any scale represents
        if policy == "max":
            return largest
        if policy == "percentile":
            share = np.cumsum(self._counts) / max(1, self._counts.sum())
            bin_ = int(np.searchsorted(share, PERCENTILE))
            return min(largest, (bin_ + 1) * self._top / _BINS / HIGHEST)
        candidates = [largest * 2 ** (-step / _STEPS_PER_OCTAVE) for step in range(_OCTAVES * _STEPS_PER_OCTAVE)]
        return min(candidates, key=self.error)

    def _centres(self) -> npt.NDArray[np.float64]:
        return (np.arange(_BINS, dtype=np.float64) + 0.5) * (self._top / _BINS)


def _in_memory_order(values: Tensor) -> Tensor:
    """Return all values in one dimension; one without gaps in memory keeps its order there, which needs no copy."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.flatten()


class Calibration:
    """The statistics of every layer's output, and the moments of what every weighted layer takes in."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.tensors = tuple(TensorStatistics(shape[0]) for shape in graph.shapes)
        self.moments = {
            index: InputMoments(layer.operation)
            for index, layer in enumerate(graph.layers)
            if isinstance(layer.operation, Affine)
        }
        self._weighted_users = [
            [user for user in graph.users(index) if user in self.moments] for index in range(len(graph.layers))
        ]

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Run a batch (N, H, W, 3) uint8 through the float graph and add the output of every layer.

        Raises:
            InputError: a layer gives a value that is infinite or NaN.
        """
        for index, value in outputs(self.graph, images):
            try:
                self.tensors[index].add(value)
            except InputError as error:
                raise InputError(f"layer {self.graph.layers[index].name} of the float network: {error}") from error
            for user in self._weighted_users[index]:
                self.moments[user].add(value)
