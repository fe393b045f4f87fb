"""The head, fitted again: it takes back what the trunk did to its features, and is never worse than it was."""

import dataclasses

import numpy as np
import pytest
import torch

from dmsh_export.compare.generated import generated_images
from dmsh_export.quantise import refit
from dmsh_export.quantise.calibration import Calibration
from dmsh_export.quantise.cost import signal_to_noise_db
from dmsh_export.quantise.float_graph_from_model import float_graph
from dmsh_export.quantise.integer_from_float import integer_from_float
from dmsh_export.quantise.scales import ScaleOptions, chosen_scales
from dmsh_model.config import HashConfig
from dmsh_model.integer import reference
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import GlobalSum
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.network import DMSH

SIZE = 32
IMAGES = generated_images(120, SIZE, seed=4)


def converted(**fields):
    """A network, its float graph, the calibration, and its integers."""
    torch.manual_seed(5)
    config = {"backbone": "vgg_small", "image_size": SIZE, "bits": 24, "lateral_features": 16, "fusion_features": 32}
    model = DMSH(HashConfig(**{**config, **fields})).eval()
    graph = float_graph(model, centred=True)
    calibration = Calibration(graph)
    calibration.add(IMAGES)
    return (
        graph,
        calibration,
        integer_from_float(graph, chosen_scales(calibration, ScaleOptions("max", 0)), calibration),
    )


def with_shrunk_features(found):
    """The same integers with a trunk whose first pooled vector says half of what it should."""
    layers = list(found.network.layers)
    index = next(index for index, layer in enumerate(layers) if isinstance(layer, GlobalSum))
    layers[index] = dataclasses.replace(layers[index], shift=layers[index].shift + 1)
    return dataclasses.replace(found, network=IntegerNetwork(tuple(layers)))


def quality(graph, found, images):
    expected = torch.cat(
        [value for index, value in refit.floats.outputs(graph, images) if index == len(graph.layers) - 1]
    )
    pooled = reference.features(found.network, images)
    return signal_to_noise_db(np.tanh(expected.double().numpy()), np.tanh(reference.head_logits(found.network, pooled)))


@pytest.fixture(scope="module")
def planted():
    graph, calibration, found = converted()
    wrong = with_shrunk_features(found)
    return graph, calibration, wrong, *refit.refitted(graph, wrong, calibration, graph, IMAGES)


def test_a_planted_fault_of_the_trunk_is_taken_back_on_images_that_were_not_seen(planted):
    graph, _, wrong, better, said = planted
    unseen = generated_images(40, SIZE, seed=9)
    assert said.strength in refit.STRENGTHS
    assert said.images == 96
    assert said.after_db > said.before_db + 6
    assert quality(graph, better, unseen) > quality(graph, wrong, unseen) + 6


def test_the_trunk_stays_as_it_was_and_the_head_keeps_its_bounds(planted):
    _, _, wrong, better, _ = planted
    head = reference.head(wrong.network)
    for index, (before, after) in enumerate(zip(wrong.network.layers, better.network.layers, strict=True)):
        assert (before is after) == (index not in head)
        bounds = better.network.accumulators[index]
        assert bounds is None or bounds.peak < FLOAT32_LIMIT
    assert len(head) == 2


def test_the_same_images_give_the_same_head(planted):
    graph, calibration, wrong, better, said = planted
    again, repeated = refit.refitted(graph, wrong, calibration, graph, IMAGES)
    assert repeated == said
    for first, second in zip(better.network.layers, again.network.layers, strict=True):
        assert all(
            np.array_equal(getattr(first, field.name), getattr(second, field.name))
            for field in dataclasses.fields(first)
        )


def test_a_fit_that_comes_no_closer_is_not_taken(planted, monkeypatch):
    graph, calibration, wrong, _, said = planted
    right = refit._ridge

    def of_the_wrong_sign(affine, values, target, strength):
        fitted = right(affine, values, target, strength)
        return dataclasses.replace(fitted, weight=2 * affine.weight - fitted.weight, bias=2 * affine.bias - fitted.bias)

    monkeypatch.setattr(refit, "_ridge", of_the_wrong_sign)
    kept, found = refit.refitted(graph, wrong, calibration, graph, IMAGES)
    assert (found.strength, found.followed) == (None, True)
    assert found.after_db > said.before_db
    monkeypatch.setattr(refit, "followed", lambda network, *_: network)
    kept, found = refit.refitted(graph, wrong, calibration, graph, IMAGES)
    assert kept is wrong
    assert (found.strength, found.followed, found.after_db) == (None, False, said.before_db)


@pytest.mark.parametrize(
    "fields",
    [{"pooling": "max"}, {"lateral_activation": "relu"}, {"fusion_activation": "none"}, {"taps": (4,)}, {"bits": 1}],
)
@pytest.mark.parametrize("count", [10, 120])
def test_every_head_is_fitted_and_few_images_make_it_no_worse(fields, count):
    graph, calibration, found = converted(**fields)
    better, said = refit.refitted(graph, found, calibration, graph, IMAGES[:count])
    assert said.after_db >= said.before_db
    judged = IMAGES[:count][refit._JUDGED_EVERY - 1 :: refit._JUDGED_EVERY]
    assert quality(graph, better, judged) == pytest.approx(said.after_db, abs=0.01)


def test_images_that_are_all_alike_are_no_reason_to_fail():
    graph, calibration, found = converted()
    same = np.repeat(IMAGES[:1], 20, 0)
    _, said = refit.refitted(graph, found, calibration, graph, same)
    assert said.after_db >= said.before_db
