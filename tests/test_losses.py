import math

import pytest
import torch

from dmsh_model.config import LossWeights
from dmsh_model.losses import classification_loss, pairwise_loss, quantisation_loss, similarity, total_loss
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
