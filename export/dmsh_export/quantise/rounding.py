"""How weights are rounded: the error of one weight is taken back by the next ones whose inputs are like its own.

A depthwise 3x3 filter on an even part of an image sees nine equal values: what counts there is the error of the sum of
its weights, not of each weight. The second moments of a layer's inputs say which weights can make up for which. Weights
are rounded one after the other, and the error of each is passed on to those that follow (Frantar, Ashkboos, Hoefler,
Alistarh, "GPTQ", ICLR 2023, https://arxiv.org/abs/2210.17323). Moments are kept within small blocks of inputs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dmsh_export.quantise.float_graph import Affine
from dmsh_model.integer.layers import HIGHEST

__all__ = ["InputMoments"]

_BLOCK = 64  # most inputs of one block: 7 channels of a 3x3 convolution
_WINDOWS_PER_IMAGE = 16
_MOST_IMAGES = 1024
_DAMPING = 0.01  # share of the mean variance
_LEAST_DAMPING = 1e-6  # share of the mean square, where nothing varies


class InputMoments:
    """Second moments of the inputs of a convolution or linear layer, in blocks.

    Each output of a layer sees C / groups channels through its window, ``height x width``. A block is a few whole
    channels; the inputs of different blocks count as independent.
    """

    def __init__(self, affine: Affine) -> None:
        self._affine = affine
        channels = affine.weight.shape[1]
        window = math.prod(affine.weight.shape[2:])
        in_block = max(1, min(channels, _BLOCK // window))
        self._blocks, self._block = math.ceil(channels / in_block), in_block * window
        # Of the inputs minus their mean over the first batch: of those that hardly vary, the variance would be a small
        # difference of large sums. So products of one batch may be in float32, three times as fast.
        self._products = torch.zeros(affine.groups, self._blocks, self._block, self._block, dtype=torch.float64)
        self._sums = torch.zeros(affine.groups, self._blocks, self._block, dtype=torch.float64)
        self._origin = torch.zeros(affine.groups, self._blocks, 1, self._block)
        self._images = self._windows = 0

    def add(self, values: Tensor) -> None:
        """Take in a batch of the layer's input, float32 (N, C, ...); images beyond the first 1,024 are left out."""
        values = values[: _MOST_IMAGES - self._images]
        if not len(values):
            return
        seen = self._in_blocks(self._seen(values))
        if not self._images:
            self._origin = seen.mean(2, keepdim=True)
        seen = seen - self._origin
        self._images += len(values)
        self._windows += seen.shape[2]
        self._sums += seen.sum(2)
        # By NumPy: of hundreds of small matrices, as a depthwise layer has, PyTorch's product takes twice the time.
        by_window = seen.numpy()
        self._products += torch.from_numpy(by_window.swapaxes(-1, -2) @ by_window)

    def rounded(self, weight: Tensor, input_scale: Tensor) -> Tensor:
        """Round weights (O, C / groups, ...), float64, to whole numbers -127 to 127 so that their sums change least.

        ``input_scale``, (C,) float64, is the size of one step of each input channel.
        """
        groups = self._affine.groups
        left = self._in_blocks(weight.flatten(1).view(groups, len(weight) // groups, -1)).transpose(1, 2).clone()
        # Row j of the upper factor of the inverse says how the error of weight j spreads over those that follow.
        inverse = torch.linalg.inv(self._covariance(input_scale))
        factor = torch.linalg.cholesky(inverse, upper=True).unsqueeze(1)
        rounded = torch.empty_like(left)
        for column in range(self._block):
            rounded[..., column] = left[..., column].round().clamp(-HIGHEST, HIGHEST)
            error = (left[..., column] - rounded[..., column]) / factor[..., column, column]
            left[..., column:] -= error.unsqueeze(-1) * factor[..., column, column:]
        return rounded.flatten(2).flatten(0, 1)[:, : weight[0].numel()].reshape(weight.shape)

    def _covariance(self, input_scale: Tensor) -> Tensor:
        """Return (groups, blocks, block, block) float64 of the inputs in steps, damped so that it has an inverse."""
        count = max(1, self._windows)
        window = math.prod(self._affine.weight.shape[2:])
        steps = input_scale.view(self._affine.groups, 1, -1).repeat_interleave(window, 2)
        steps = self._in_blocks(1 / steps)[:, :, 0]
        offset = self._sums / count
        found = self._products / count - offset.unsqueeze(-1) * offset.unsqueeze(-2)
        found = found * steps.unsqueeze(-1) * steps.unsqueeze(-2)
        variances = found.diagonal(dim1=-2, dim2=-1)
        mean = (self._origin.squeeze(2) + offset) * steps
        variance, power = variances.mean(), (variances + mean**2).mean()
        # Inputs that never vary neither give nor take an error.
        damping = _DAMPING * variance.clamp(min=0) + _LEAST_DAMPING * power + 1e-12
        return found + damping * torch.eye(self._block, dtype=torch.float64)

    def _in_blocks(self, rows: Tensor) -> Tensor:
        """(groups, rows, inputs of an output) -> (groups, blocks, rows, block), the last block filled up with 0."""
        if missing := self._blocks * self._block - rows.shape[2]:
            rows = F.pad(rows, (0, missing))
        return rows.view(*rows.shape[:2], self._blocks, self._block).transpose(1, 2)

    def _seen(self, values: Tensor) -> Tensor:
        """Return what the layer sees at some positions of each image, (groups, windows, inputs of an output)."""
        affine = self._affine
        if values.ndim == 2:
            return values.unsqueeze(0)
        top, left, bottom, right = affine.padding
        windows = F.pad(values, [left, right, top, bottom])
        for axis in (0, 1):
            reach = (affine.weight.shape[2 + axis] - 1) * affine.dilation[axis] + 1
            windows = windows.unfold(2 + axis, reach, affine.stride[axis])
        windows = windows[..., :: affine.dilation[0], :: affine.dilation[1]]  # a view, (N, C, H', W', height, width)
        windows = windows.view(len(windows), affine.groups, -1, *windows.shape[2:])
        windows = windows.permute(1, 0, 3, 4, 2, 5, 6)  # the groups first
        width = windows.shape[3]
        positions = windows.shape[2] * width
        number = self._images + torch.arange(len(values)).unsqueeze(1)
        # Other positions in every image, whatever the batch.
        chosen = (torch.arange(_WINDOWS_PER_IMAGE) * positions // _WINDOWS_PER_IMAGE + 7 * number) % positions
        image = torch.arange(len(values)).unsqueeze(1)
        taken = windows[:, image, chosen // width, chosen % width]  # (groups, N, windows, C / groups, height, width)
        return taken.flatten(3).flatten(1, 2).contiguous()  # maps may lie in memory with the channels last
