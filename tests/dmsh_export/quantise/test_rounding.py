"""Rounding weights together: the error of what a layer gives is least, not the error of each weight."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dmsh_export.quantise.float_graph import Affine
from dmsh_export.quantise.rounding import InputMoments

ONES = torch.ones(6).double()


def images(count=64, channels=6, size=12):
    """Even areas: neighbouring values are nearly equal, and so are the channels."""
    torch.manual_seed(0)
    return 5 + 3 * torch.randn(count, 1, 1, 1) + 0.3 * torch.randn(count, channels, size, size)


def affine(out, channels, kernel, groups=1, **fields):
    torch.manual_seed(1)
    weight = 40 * torch.randn(out, channels // groups, kernel, kernel).double()
    return Affine(weight, torch.zeros(out).double(), groups=groups, **fields)


def error(layer, rounded, values):
    """The variance of the error of each output, which no bias can take back."""
    wrong = (rounded - layer.weight).float()
    given = F.conv2d(values, wrong, None, layer.stride, layer.padding[0], layer.dilation, layer.groups)
    return float(given.var((0, 2, 3)).mean())


LAYERS = {
    "depthwise": affine(6, 6, 3, 6, padding=(1, 1, 1, 1)),
    "dense, of one block": affine(5, 6, 3),
    "in groups": affine(4, 6, 3, 2, stride=(2, 2)),
    "dilated": affine(6, 6, 3, 6, dilation=(2, 2)),
    "1x1": affine(9, 6, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_errors_of_inputs_that_are_alike_cancel(name):
    layer, values = LAYERS[name], images()
    moments = InputMoments(layer)
    moments.add(values)
    found = moments.rounded(layer.weight, ONES)
    assert torch.equal(found, found.round())
    assert found.abs().max() <= 127
    assert (found - layer.weight).abs().max() < 8  # near where it was
    assert error(layer, found, images()) < 0.5 * error(layer, layer.weight.round(), images())


def test_several_blocks_with_the_last_filled_up_round_every_weight():
    layer = affine(3, 150, 1)
    moments = InputMoments(layer)
    moments.add(images(channels=150))
    found = moments.rounded(layer.weight, torch.ones(150).double())
    assert found.shape == layer.weight.shape
    assert (found - layer.weight).abs().max() < 8


def test_steps_of_the_inputs_count():
    """An input in steps of a tenth counts ten times as much as its values say."""
    layer = affine(5, 6, 1)
    scale = torch.tensor([0.1, 1, 1, 1, 1, 1]).double()
    moments, in_steps = InputMoments(layer), InputMoments(layer)
    moments.add(images())
    in_steps.add(images() / scale.float().view(-1, 1, 1))
    assert torch.equal(moments.rounded(layer.weight, scale), in_steps.rounded(layer.weight, ONES))


@pytest.mark.parametrize("mean", [0, 100])
def test_the_batches_change_nothing(mean):
    layer, values = LAYERS["depthwise"], images() + mean
    whole, parts = InputMoments(layer), InputMoments(layer)
    whole.add(values)
    for start in range(0, 64, 7):
        parts.add(values[start : start + 7])
    assert torch.equal(whole.rounded(layer.weight, ONES), parts.rounded(layer.weight, ONES))


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_inputs_that_never_vary_round_each_weight_to_the_nearest(value):
    layer = LAYERS["depthwise"]
    moments = InputMoments(layer)
    moments.add(torch.full((8, 6, 12, 12), value))
    if value == 0:
        assert torch.equal(moments.rounded(layer.weight, ONES), layer.weight.round().clamp(-127, 127))
    assert np.isfinite(moments.rounded(layer.weight, ONES).numpy()).all()


def test_without_images_each_weight_goes_to_the_nearest():
    layer = LAYERS["1x1"]
    assert torch.equal(InputMoments(layer).rounded(layer.weight, ONES), layer.weight.round().clamp(-127, 127))
