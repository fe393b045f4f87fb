import tracemalloc

import numpy as np
import pytest

from dmsh_model.unlabelled.itq import Moments, principal_components, rotation
from dmsh_serving.errors import InputError


def features(count=400, width=12, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 5)) @ random.normal(size=(5, width)) + 100).astype(np.float32) + (
        0.1 * random.normal(size=(count, width)).astype(np.float32)
    )


def moments_of(taps, block=64):
    moments = Moments(taps.shape[1])
    for start in range(0, len(taps), block):
        moments.add(taps[start : start + block])
    return moments


def test_moments_added_by_block_are_those_of_all():
    taps = features()
    moments = moments_of(taps)
    assert np.allclose(moments.mean(), taps.astype(float).mean(0))
    assert np.allclose(moments.covariance(), np.cov(taps.astype(float).T, bias=True))


def test_components_are_those_of_a_plain_pca_of_standardised_features():
    taps = features()
    standardised = (taps - taps.astype(float).mean(0)) / taps.astype(float).std(0)
    _, values, vectors = np.linalg.svd(standardised, full_matrices=False)
    found = principal_components(moments_of(taps), 4)
    assert np.allclose(np.abs(found.of(taps)), np.abs(standardised @ vectors[:4].T), atol=1e-4)
    assert found.explained == pytest.approx((values[:4] ** 2).sum() / (values**2).sum())


def test_the_rotation_is_one_and_brings_vectors_nearer_to_their_signs():
    random = np.random.default_rng(1)
    mixing, _ = np.linalg.qr(random.normal(size=(6, 6)))
    projected = np.where(random.random((500, 6)) > 0.5, 1.0, -1.0) @ mixing + 0.05 * random.normal(size=(500, 6))
    found = rotation(projected, 0)
    assert np.allclose(found @ found.T, np.eye(6))

    def loss(values):
        return np.square(np.where(values > 0, 1, -1) - values).mean()

    assert loss(projected @ found) < 0.6 * loss(projected)
    assert np.array_equal(found, rotation(projected, 0))


def test_constant_features_count_for_nothing_and_more_bits_than_the_others_are_refused():
    taps = features(width=6)
    taps[:, 2] = 7.7
    assert np.allclose(principal_components(moments_of(taps), 5).components[2], 0)
    with pytest.raises(InputError, match="6 bits are more than the 5 directions in which 400 images with 5 features"):
        principal_components(moments_of(taps), 6)
    with pytest.raises(InputError, match="4 bits are more than the 3 directions in which 4 images"):
        principal_components(moments_of(taps[:4]), 4)
    with pytest.raises(InputError, match="all alike, or of one colour"):
        principal_components(moments_of(np.full((9, 6), 7.7, np.float32)), 2)


def test_memory_does_not_grow_with_the_number_of_vectors():
    def peak(blocks):
        block = features(256)
        moments = Moments(block.shape[1])
        tracemalloc.start()
        for _ in range(blocks):
            moments.add(block)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(200) < 1.1 * peak(10)
