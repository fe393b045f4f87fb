import math

import numpy as np
import pytest
import torch

from dmsh_model.config import LossWeights
from dmsh_model.training.centres import centre_loss, centres_of_images, hash_centres
from dmsh_model.training.losses import (
    balance_loss,
    classification_loss,
    pair_weights,
    pairwise_loss,
    quantisation_loss,
    similarity,
    total_loss,
)
from dmsh_serving.errors import InputError


def slow_pairwise_loss(relaxed, similar):
    terms = []
    count, bits = relaxed.shape
    for i in range(count):
        for j in range(count):
            if i != j:
                theta = 0.5 * sum(relaxed[i, b].item() * relaxed[j, b].item() for b in range(bits)) * 16 / bits
                terms.append(math.log(1 + math.exp(theta)) - (theta if similar[i, j] else 0))
    return sum(terms) / len(terms)


def test_images_are_similar_when_their_class_is_the_same():
    assert similarity(torch.tensor([0, 1, 0])).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_images_with_many_labels_are_similar_when_they_share_one():
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    assert similarity(labels).tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_one_hot_labels_are_as_similar_as_their_classes():
    classes = torch.tensor([2, 0, 1, 2, 0])
    assert torch.equal(similarity(torch.nn.functional.one_hot(classes)), similarity(classes))


def test_labels_of_another_rank_are_refused():
    with pytest.raises(InputError, match=r"\[2, 2, 2\]"):
        similarity(torch.zeros(2, 2, 2))


@pytest.mark.parametrize("bits", [1, 16, 48])
def test_the_pairwise_loss_is_the_written_formula(bits):
    relaxed = torch.tanh(torch.randn(6, bits, generator=torch.Generator().manual_seed(bits)).double())
    similar = similarity(torch.tensor([0, 0, 1, 1, 2, 0]))
    assert pairwise_loss(relaxed, similar).item() == pytest.approx(slow_pairwise_loss(relaxed, similar), abs=1e-12)


def test_the_pairwise_loss_stays_finite_where_a_naive_exponential_overflows():
    relaxed = torch.tensor([[100.0], [100.0], [-100.0]], requires_grad=True)
    loss = pairwise_loss(relaxed, similarity(torch.tensor([0, 1, 2])))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(relaxed.grad).all()


def test_like_codes_for_like_images_lose_less_than_unlike_codes():
    similar = similarity(torch.tensor([0, 0]))
    alike, opposite = torch.ones(2, 32), torch.stack([torch.ones(32), -torch.ones(32)])
    assert pairwise_loss(alike, similar) < pairwise_loss(opposite, similar)
    assert pairwise_loss(alike, ~similar) > pairwise_loss(opposite, ~similar)


def test_the_quantisation_loss_is_zero_for_binary_codes_alone():
    assert quantisation_loss(torch.tensor([[1.0, -1.0]])).item() == 0
    assert quantisation_loss(torch.tensor([[0.5, -1.0]])).item() == pytest.approx(0.125)


def test_many_labels_are_classified_each_on_its_own():
    scores = torch.tensor([[20.0, 20.0, -20.0]])
    assert classification_loss(scores, torch.tensor([[1, 1, 0]])).item() < 1e-6
    assert classification_loss(scores, torch.tensor([[1, 0, 0]])).item() > 1


def test_the_total_is_the_weighted_sum_of_the_named_parts():
    generator = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(5, 8, generator=generator), torch.randn(5, 3, generator=generator)
    losses = total_loss(logits, torch.tensor([0, 1, 2, 1, 0]), scores, LossWeights(2.0, 0.5, 0.25))
    expected = 2.0 * losses.pairwise + 0.5 * losses.quantisation + 0.25 * losses.classification
    assert losses.total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert min(losses.pairwise, losses.quantisation, losses.classification) > 0


def test_without_a_classifier_the_classification_part_is_zero():
    losses = total_loss(torch.ones(3, 8), torch.tensor([0, 1, 0]), None, LossWeights())
    assert losses.classification.item() == 0


def slow_pair_weights(labels, imbalance):
    """HashNet's weights pair by pair, of labels as sets."""
    count = len(labels)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    alike = [(i, j) for i, j in pairs if labels[i] & labels[j]]
    weights = {}
    for i, j in pairs:
        shared = len(labels[i] & labels[j]) / len(labels[i] | labels[j])
        of_its_kind = len(alike) if shared else len(pairs) - len(alike)
        weights[i, j] = ((shared or 1) * len(pairs) / (2 * of_its_kind)) ** imbalance
    return weights


@pytest.mark.parametrize("imbalance", [0.0, 0.5, 1.0])
def test_pairs_are_weighted_as_written_with_one_label_and_with_several(imbalance):
    several = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    for labels, sets in (
        (several, [{n for n in range(4) if row[n]} for row in several.tolist()]),
        (torch.tensor([0, 0, 1, 2, 2]), [{0}, {0}, {1}, {2}, {2}]),
    ):
        found = pair_weights(labels, imbalance)
        for (i, j), expected in slow_pair_weights(sets, imbalance).items():
            assert found[i, j].item() == pytest.approx(expected, rel=1e-6)


def test_with_full_imbalance_both_kinds_of_pairs_count_the_same_in_all():
    labels = torch.arange(10) // 2
    weights, similar = pair_weights(labels, 1.0), similarity(labels)
    other = ~torch.eye(10, dtype=torch.bool)
    assert weights[similar & other].sum().item() == pytest.approx(weights[~similar].sum().item()) == pytest.approx(45)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_of_one_kind_of_pairs_has_a_finite_weighted_loss(labels):
    losses = total_loss(torch.ones(3, 8), torch.tensor(labels), None, LossWeights(imbalance=1))
    assert torch.isfinite(losses.total)


def test_an_imbalance_above_one_is_refused():
    with pytest.raises(InputError, match=r"imbalance = 1\.5 must be 0 to 1"):
        LossWeights(imbalance=1.5)


def test_balance_is_zero_for_bits_that_halve_the_images_and_one_for_bits_that_tell_nothing():
    assert balance_loss(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).item() == 0
    assert balance_loss(torch.ones(4, 8)).item() == 1
    always, never, half = [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]  # of two images; the bits are three
    assert balance_loss(torch.tensor([always, never, half]).T).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(("classes", "bits"), [(10, 16), (32, 16), (100, 64), (128, 64)])
def test_centres_of_a_power_of_two_bits_differ_in_at_least_half_of_them(classes, bits):
    products = hash_centres(classes, bits).astype(int) @ hash_centres(classes, bits).T.astype(int)
    assert products.shape == (classes, classes)
    assert (products[~np.eye(classes, dtype=bool)] <= 0).all()


@pytest.mark.parametrize(
    ("classes", "bits", "apart"), [(10, 48, 20), (36, 48, 16), (40, 16, 4), (3, 1, 0), (21, 12, 2)]
)
def test_other_centres_are_balanced_reproducible_and_apart(classes, bits, apart):
    centres = hash_centres(classes, bits)
    assert centres.shape == (classes, bits)
    assert (np.abs(centres.sum(1)) <= 1).all()
    assert np.array_equal(centres, hash_centres(classes, bits))
    distances = (bits - centres.astype(int) @ centres.T.astype(int)) // 2
    assert distances[~np.eye(classes, dtype=bool)].min() >= apart


def test_an_image_of_several_labels_is_drawn_to_the_majority_of_their_centres_and_to_the_first_in_a_tie():
    centres = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, -1, 1]])
    labels = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.uint8)
    assert centres_of_images(centres, labels).tolist() == [[1, -1, 1], [1, 1, 1], [-1, -1, 1], [1, -1, -1]]
    assert torch.equal(centres_of_images(centres, torch.tensor([2, 0])), centres[[2, 0]])


def test_the_loss_of_centres_is_the_cross_entropy_of_the_relaxed_bits():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.where(torch.arange(24).reshape(4, 6) % 3 == 0, 1, -1)
    terms = [
        -math.log((1 + math.tanh(logits[i, b])) / 2 if targets[i, b] > 0 else (1 - math.tanh(logits[i, b])) / 2)
        for i in range(4)
        for b in range(6)
    ]
    assert centre_loss(logits, targets).item() == pytest.approx(sum(terms) / 24, abs=1e-12)
    assert torch.isfinite(centre_loss(torch.full((2, 3), 1e4), -torch.ones(2, 3)))


def test_balance_and_centres_count_in_the_total_by_their_weights():
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    labels, centres = torch.tensor([0, 1, 2, 1, 0, 2]), torch.from_numpy(hash_centres(3, 8))
    plain = total_loss(logits, labels, None, LossWeights())
    more = total_loss(logits, labels, None, LossWeights(balance=2, centres=0.5), centres)
    assert plain.centres.item() == 0
    assert min(more.balance, more.centres) > 0
    assert more.total.item() == pytest.approx((plain.total + 2 * more.balance + 0.5 * more.centres).item(), abs=1e-6)
    with pytest.raises(InputError, match="leave --centres out"):
        total_loss(logits, labels, None, LossWeights(centres=1))
