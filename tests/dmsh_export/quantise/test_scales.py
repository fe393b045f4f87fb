"""The size of a step: what a policy asks for, shared out to channels, and one unit for tensors that are added."""

import math
from types import SimpleNamespace

import pytest
import torch

from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.calibration import TensorStatistics
from dmsh_export.quantise.float_graph import FloatGraph, FloatLayer
from dmsh_export.quantise.scales import ScaleOptions, added_together, chosen_scales

NONE = torch.zeros(0)
LEAF = floats.Affine(NONE, NONE)


def statistics(values):
    """Of (N, C) values."""
    found = TensorStatistics(values.shape[1])
    found.add(values)
    return found


def calibration(layers, tensors):
    return SimpleNamespace(graph=FloatGraph(tuple(layers), ()), tensors=tensors)


@pytest.mark.parametrize(
    ("equalisation", "expected"),
    [(0, (1, 1, 1)), (1, (1, 1 / 4, 1 / 32)), (0.5, (1, 1 / 2, math.sqrt(1 / 32)))],
)
def test_equalisation_gives_a_channel_of_smaller_values_finer_steps_down_to_a_32nd(equalisation, expected):
    values = statistics(torch.tensor([[127.0, 127 / 4, 127 / 1000]]))
    found = chosen_scales(calibration([FloatLayer("one", LEAF, ())], [values]), ScaleOptions("max", equalisation))
    assert found[0].tolist() == pytest.approx(expected)


def test_channels_of_pooling_keep_one_step_whatever_the_equalisation():
    values = statistics(torch.tensor([[127.0, 1.0]]))
    layers = [FloatLayer("pooled", floats.GlobalMax(), ())]
    assert chosen_scales(calibration(layers, [values]), ScaleOptions("max", 1))[0].tolist() == [1, 1]


def test_no_step_is_larger_than_a_clip_needs():
    values = statistics(torch.tensor([[127.0, 1.0]]))
    layers = [FloatLayer("one", LEAF, (), high=6.0)]
    assert chosen_scales(calibration(layers, [values]), ScaleOptions("max", 0))[0].tolist() == [6 / 127] * 2


def test_a_channel_never_has_coarser_steps_than_its_tensor():
    values = statistics(
        torch.cat([torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)), torch.ones(1, 2) * 99])
    )
    layers = [FloatLayer("one", LEAF, ())]
    options = [ScaleOptions("percentile", share) for share in (0.0, 1.0)]
    alike, equalised = (chosen_scales(calibration(layers, [values]), each)[0] for each in options)
    assert (equalised <= alike).all()


def test_outputs_that_meet_in_additions_are_one_group_also_through_pooling_and_concatenation():
    layers = [
        FloatLayer("0", LEAF, ()),
        FloatLayer("1", LEAF, (0,)),
        FloatLayer("2 pools 1", floats.MaxPool((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)), (1,)),
        FloatLayer("3", LEAF, (0,)),
        FloatLayer("4 joins 2 and 3", floats.Concat(), (2, 3)),
        FloatLayer("5", LEAF, (0,)),
        FloatLayer("6 adds 4 and 5", floats.Add(), (4, 5)),
        FloatLayer("7", LEAF, (6,)),
        FloatLayer("8", LEAF, (6,)),
        FloatLayer("9 adds 7 and 8", floats.Add(), (7, 8)),
        FloatLayer("10", LEAF, (9,)),
        FloatLayer("11 adds 10 and 9", floats.Add(), (10, 9)),
        FloatLayer("12 is alone", LEAF, (11,)),
    ]
    assert sorted(added_together(FloatGraph(tuple(layers), ()))) == [[1, 3, 5, 6], [7, 8, 9, 10, 11]]


def added(*spreads, seed=0):
    """Three tensors, the last the sum of the others, of normal values with these deviations."""
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(4000, 2, generator=random) ** 3 * spread for spread in spreads]
    layers = [FloatLayer("0", LEAF, ()), FloatLayer("1", LEAF, ()), FloatLayer("2", floats.Add(), (0, 1))]
    return calibration(layers, [statistics(each) for each in (*values, sum(values))])


def oracle(tensors, relative):
    """The least sum of errors of any unit out of eight per octave, each tensor with its best power of two near."""
    best = (math.inf, [])
    for step in range(8):
        unit = 2 ** (step / 8)
        scales = []
        for tensor in tensors:
            exponent = math.log2(tensor.scale("mse") / unit)
            choices = [unit * 2.0 ** math.floor(exponent), unit * 2.0 ** math.ceil(exponent)]
            scales.append(min(choices, key=tensor.error))
        total = sum(
            tensor.error(scale) / (tensor.power() if relative else 1)
            for tensor, scale in zip(tensors, scales, strict=True)
        )
        best = min(best, (total, scales))
    return best[1]


def test_the_unit_of_an_addition_is_that_of_the_smallest_relative_errors():
    differing = 0
    for seed in range(6):
        world = added(1.0, 37.0, seed=seed)
        found = [float(scale[0]) for scale in chosen_scales(world, ScaleOptions("mse", 0))]
        assert found == pytest.approx(oracle(world.tensors, relative=True))
        differing += found != pytest.approx(oracle(world.tensors, relative=False))
        steps = [math.log2(scale / found[0]) for scale in found]
        assert steps == pytest.approx([round(step) for step in steps], abs=1e-9)
    assert differing  # else relative and absolute errors could not be told apart here


def test_a_dead_tensor_in_an_addition_takes_any_unit():
    world = added(1.0, 0.0)
    found = chosen_scales(world, ScaleOptions("mse", 0))
    assert all(bool(scale.isfinite().all()) and float(scale.min()) > 0 for scale in found)


def test_the_max_policy_rounds_the_steps_of_an_addition_up():
    world = added(1.0, 5.0)
    found = chosen_scales(world, ScaleOptions("max", 0))
    for tensor, scale in zip(world.tensors, found, strict=True):
        assert tensor.scale("max") <= float(scale[0]) < 2 * tensor.scale("max")
