"""The integers of a head follow given logits, on images that they were not moved for too."""

import dataclasses

import integer_networks
import numpy as np

from dmsh_export.quantise.follow import followed
from dmsh_model.integer import reference
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.network import IntegerNetwork

NETWORK = integer_networks.network()
POOLED = reference.features(NETWORK, integer_networks.images(300))


def disturbed():
    """The same network with noise on the weights of its head."""
    random = np.random.default_rng(3)
    layers = list(NETWORK.layers)
    for index in reference.head(NETWORK):
        weight = layers[index].weight
        noisy = np.clip(weight + random.integers(-20, 21, weight.shape), -127, 127).astype(np.int8)
        layers[index] = dataclasses.replace(layers[index], weight=noisy)
    return IntegerNetwork(tuple(layers))


def distance(network, rows):
    target = np.tanh(reference.head_logits(NETWORK, POOLED[rows]))
    return float(np.square(np.tanh(reference.head_logits(network, POOLED[rows])) - target).mean())


def test_a_disturbed_head_finds_back_on_images_that_it_was_not_moved_for():
    wrong, seen, unseen = disturbed(), slice(0, 200), slice(200, 300)
    target = reference.head_logits(NETWORK, POOLED[seen]).astype(np.float64)
    better = followed(wrong, POOLED[seen], target)
    assert distance(better, unseen) < 0.5 * distance(wrong, unseen)
    for index, (before, after) in enumerate(zip(wrong.layers, better.layers, strict=True)):
        assert (before is after) == (index not in reference.head(wrong))
        bounds = better.accumulators[index]
        assert bounds is None or bounds.peak < FLOAT32_LIMIT


def test_the_same_images_give_the_same_integers():
    target = reference.head_logits(NETWORK, POOLED).astype(np.float64)
    first, second = (followed(disturbed(), POOLED, target) for _ in range(2))
    assert reference.head_logits(first, POOLED).tobytes() == reference.head_logits(second, POOLED).tobytes()
