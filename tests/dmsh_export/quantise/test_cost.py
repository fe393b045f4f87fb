"""What a quantisation is said to cost is what one would count by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.quantise import cost
from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.batches import Sample
from dmsh_export.quantise.float_graph import FloatGraph, FloatLayer
from dmsh_export.quantise.integer_from_float import integer_from_float
from dmsh_model.integer import reference

SIZE = 6


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def graph(bias):
    """Three channels, each half of a colour and a bias: with steps of 1/2 they hold -64 to 63.5."""
    half = torch.diag(tensor(0.5, 0.5, 0.5)).view(3, 3, 1, 1)
    layers = (
        FloatLayer("image", floats.Image(SIZE), ()),
        FloatLayer("halves", floats.Affine(half, bias), (0,)),
        FloatLayer("pooled", floats.GlobalMax(), (1,)),
        FloatLayer("hash", floats.Affine(torch.eye(3).double()[:2], tensor(0.0, 0.25)), (2,)),
    )
    return FloatGraph(layers, ((3, SIZE, SIZE), (3, SIZE, SIZE), (3,), (2,)))


def costs(bias, images):
    made = graph(bias)
    found = integer_from_float(made, (torch.ones(3), torch.full((3,), 0.5).double(), torch.ones(3), torch.ones(2)))
    return made, found, cost.layer_costs(made, SimpleNamespace(network=found.network), found.scales, images)


@pytest.mark.parametrize(("pixel", "sign"), [(0, -1), (255, 1)])
def test_a_value_counts_as_clipped_if_it_is_more_than_half_a_step_beyond_the_last(pixel, sign):
    images = np.full((4, SIZE, SIZE, 3), pixel, np.uint8)
    # The channels end at half a step beyond the last, and by a hundredth on either side of that.
    _, _, found = costs(tensor(sign * 0.25, sign * 0.26, sign * 0.24), images)
    assert [each.name for each in found] == ["image", "halves", "pooled", "hash"]
    assert found[1].clipped_share == pytest.approx(1 / 3)
    assert (found[0].clipped_share, found[3].clipped_share) == (0, 0)  # an image holds -128; logits are never clipped


def test_signal_and_noise_are_summed_over_all_images_whatever_the_batch(monkeypatch):
    images = generated_images(7, SIZE, seed=5)
    bias = tensor(0.1, -0.2, 0.3)
    made, found, whole = costs(bias, images)
    monkeypatch.setattr(cost, "batch_size", lambda _: 2)
    in_parts = costs(bias, images)[2]
    rows = zip(floats.outputs(made, images), reference.outputs(found.network, images), strict=True)
    for (index, wanted), (_, steps) in rows:
        scale = found.scales[index].view(1, -1, *[1] * (wanted.ndim - 2)).numpy()
        worth = steps.double().numpy() * scale
        if index == 3:
            worth = worth * 2.0 ** found.network.layers[3].exponent
        expected = wanted.double().numpy()
        noise = ((expected - worth) ** 2).sum()
        ratio = 10 * math.log10((expected**2).sum() / noise) if noise else math.inf
        assert whole[index].signal_to_noise_db == pytest.approx(ratio, abs=1e-3)
        assert in_parts[index].signal_to_noise_db == pytest.approx(ratio, abs=1e-3)
    assert [each.clipped_share for each in whole] == [each.clipped_share for each in in_parts]


def test_a_layer_is_told_by_kind_scale_and_accumulator():
    _, found, rows = costs(tensor(0, 0, 0), generated_images(2, SIZE))
    assert [each.kind for each in rows] == ["Image", "Convolution", "GlobalMax", "Logits"]
    assert [each.scale for each in rows] == [1, 0.5, 0.5, 1]
    peak = found.network.accumulators[1].peak
    assert [each.accumulator_bits is None for each in rows] == [True, False, True, False]
    assert rows[1].accumulator_bits == math.log2(peak)


def test_decibels_are_those_of_powers():
    assert cost.decibels(10, 1) == pytest.approx(10)
    assert cost.decibels(1, 100) == pytest.approx(-20)
    assert cost.decibels(3, 0) == cost.decibels(0, 0) == math.inf
    assert cost.decibels(0, 3) == -math.inf
    assert cost.signal_to_noise_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20)


class Network(SimpleNamespace):
    """Gives the logits that it was given, row by row of the first pixel."""

    def logits(self, images, batch_size=None):
        return self.table[images[:, 0, 0, 0]]


def cost_of(names, expected, found):
    config = SimpleNamespace(image_size=2, bits=expected.shape[1])
    sample = SimpleNamespace(
        names=names, images=lambda: np.arange(len(names), dtype=np.uint8).repeat(12).reshape(-1, 2, 2, 3)
    )
    return cost.code_cost(Network(config=config, table=expected), Network(config=config, table=found), sample)


SIGNS = np.array([[1, 1, 1], [-1, -1, -1], [1, 1, 1], [-1, -1, -1]], np.float32)


def test_equal_bits_and_the_noise_of_logits_are_those_of_all_images():
    found = SIGNS.copy()
    found[3, 2] = 1
    measured = cost_of(["a", "b", "c", "d"], SIGNS, found)
    assert (measured.images, measured.bits_compared, measured.equal_bits_share) == (4, 12, 11 / 12)
    assert measured.logits_signal_to_noise_db == pytest.approx(10 * math.log10(12 / 4))
    assert measured.float_map is None
    assert measured.integer_map is None


def test_the_first_half_is_asked_for_in_the_second_if_folders_give_classes():
    swapped = SIGNS.copy()
    swapped[2:] = -SIGNS[2:]  # each query now meets the other class first
    measured = cost_of(["cat/1", "dog/2", "cat/3", "dog/4"], SIGNS, swapped)
    assert (measured.float_map, measured.integer_map) == (1.0, 0.5)


@pytest.mark.parametrize("names", [["cat/1", "dog/2", "cat/3", "stray"], ["cat/1", "cat/2", "cat/3", "cat/4"]])
def test_without_classes_or_with_one_there_is_no_map(names):
    assert cost_of(names, SIGNS, SIGNS).float_map is None


def test_a_sample_keeps_what_it_holds_together_and_every_part_of_the_stream_has_its_share():
    places = np.zeros(10)
    for shuffle in range(30):
        sample = Sample(20)
        order = np.random.default_rng(shuffle).permutation(200)
        for start in range(0, 200, 7):
            rows = np.arange(200)[start : start + 7]
            values = order[rows].astype(np.uint8)
            sample.add(values.repeat(12).reshape(-1, 2, 2, 3), np.array([str(row) for row in rows], np.object_))
        assert len(sample.images()) == len(set(sample.names)) == 20
        assert sample.images()[:, 0, 0, 0].tolist() == [order[int(name)] for name in sample.names]
        rows = [int(name) for name in sample.names]
        assert rows != sorted(rows)
        places += np.bincount(np.array(rows) // 20, minlength=10)
    assert places.min() > 0
