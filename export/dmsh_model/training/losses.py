"""Training losses: similar images get similar codes, codes are nearly binary, classes can be told from codes.

All act on the relaxed code u = tanh(logits), each bit in (-1, 1).
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsh_model.config import LossWeights
from dmsh_model.training.centres import centre_loss, centres_of_images
from dmsh_serving.errors import InputError

__all__ = [
    "Losses",
    "balance_loss",
    "classification_loss",
    "distillation_loss",
    "pair_weights",
    "pairwise_loss",
    "quantisation_loss",
    "similarity",
    "total_loss",
]

# DPSH was tuned for about 16 bits; longer codes are scaled to the same range of theta, else it saturates.
_REFERENCE_BITS = 16


@dataclass(frozen=True)
class Losses:
    """The weighted sum that is minimised and its unweighted parts, each a scalar tensor."""

    total: Tensor
    pairwise: Tensor
    quantisation: Tensor
    classification: Tensor
    distillation: Tensor
    balance: Tensor
    centres: Tensor

    def parts(self) -> list[Tensor]:
        """Return the total and every part in the order of the fields, detached."""
        return [getattr(self, entry.name).detach() for entry in dataclasses.fields(self)]


def similarity(labels: Tensor) -> Tensor:
    """Which images are alike: (N,) int64 classes, or (N, C) multi-hot labels -> (N, N) bool.

    Two images are similar when they have the same class, or share at least one label.

    Raises:
        InputError: labels of another rank.
    """
    if labels.ndim == 1:
        return labels[:, None] == labels[None, :]
    if labels.ndim == 2:
        shared = labels.to(torch.float32)
        return shared @ shared.T > 0
    raise InputError(f"labels must be [N] classes or [N, C] multi-hot, got {list(labels.shape)}")


def pair_weights(labels: Tensor, imbalance: float) -> Tensor:
    """Return how much each pair counts, (N, N) float32: HashNet's weights, to the power of ``imbalance``.

    HashNet's weight of a similar pair is (pairs / similar pairs) J, of another (pairs / dissimilar pairs); J is the
    labels that the two share over all labels that they have, 1 with one label each. Halved here, so that at
    ``imbalance`` 1 each kind of pair counts one half in all (a little less for J), as if every pair counted 1.
    Cao, Long, Wang, Yu, "HashNet: Deep Learning to Hash by Continuation", ICCV 2017; https://arxiv.org/abs/1702.00758.

    Args:
        labels: (N,) int64 classes, or (N, C) multi-hot.
        imbalance: 0 to 1.
    """
    similar = similarity(labels)
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pairs, alike = other.sum(), (similar & other).sum()
    # A batch may lack one kind; there nothing is weighted by its count.
    of_similar, of_dissimilar = (pairs / (2 * count.clamp(min=1)) for count in (alike, pairs - alike))
    shared = similar.to(torch.float32)
    if labels.ndim == 2:
        rows = labels.to(torch.float32)
        both, each = rows @ rows.T, rows.sum(1)
        shared = both / (each[:, None] + each[None, :] - both).clamp(min=1)
    return torch.where(similar, of_similar * shared, of_dissimilar).pow(imbalance)


def pairwise_loss(relaxed: Tensor, similar: Tensor, weights: Tensor | None = None) -> Tensor:
    """Negative log likelihood of the pairs' similarity: the mean of log(1 + exp(theta)) - s theta over i != j.

    theta = (u_i . u_j) / 2, scaled to the range it has at 16 bits. Li, Wang, Kang, "Feature Learning based Deep
    Supervised Hashing with Pairwise Labels" (DPSH), IJCAI 2016, equation 2; https://arxiv.org/abs/1511.03855.

    Args:
        relaxed: (N, K) float, N >= 2.
        similar: (N, N) bool.
        weights: (N, N) float, how much each pair counts; None is 1.
    """
    count, bits = relaxed.shape
    theta = relaxed @ relaxed.T * (0.5 * _REFERENCE_BITS / bits)
    likelihood = F.softplus(theta) - similar.to(theta.dtype) * theta
    if weights is not None:
        likelihood = likelihood * weights
    return (likelihood.sum() - likelihood.diagonal().sum()) / (count * (count - 1))


def quantisation_loss(relaxed: Tensor) -> Tensor:
    """Mean of (|u| - 1)^2 over (N, K): the squared distance to the nearest binary code.

    Zhu, Long, Wang, Cao, "Deep Hashing Network for Efficient Similarity Retrieval" (DHN), AAAI 2016, has the same
    prior in a smooth form; the squared one is DPSH's. https://ojs.aaai.org/index.php/AAAI/article/view/10235
    """
    return (relaxed.abs() - 1).square().mean()


def balance_loss(relaxed: Tensor) -> Tensor:
    """Mean over the bits of (N, K) of the squared mean of each: 0 if every bit is 1 for half of the images.

    Erin Liong, Lu, Wang, Moulin, Zhou, "Deep Hashing for Compact Binary Codes Learning", CVPR 2015, equation 4, in the
    relaxed form that gradients need.
    """
    return relaxed.mean(0).square().mean()


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of class scores (N, C) with (N,) int64 classes, or of each label with (N, C) multi-hot ones."""
    if labels.ndim == 1:
        return F.cross_entropy(scores, labels)
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))


def distillation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean square distance of relaxed codes from a teacher's, as a share of the teacher's power; both logits (N, K).

    Of the relaxed codes, not of the logits: what decides a bit is near 0, and far from it an error changes nothing.
    """
    relaxed = torch.tanh(target)
    return (torch.tanh(logits) - relaxed).square().mean() / relaxed.square().mean()


def total_loss(
    logits: Tensor, labels: Tensor, scores: Tensor | None, weights: LossWeights, centres: Tensor | None = None
) -> Losses:
    """Compute every part that labels give and their weighted sum; distillation, which needs a teacher, is 0.

    Args:
        logits: (N, K) float, N >= 2.
        labels: (N,) int64 classes, or (N, C) multi-hot.
        scores: (N, C) float, the linear classifier's output for ``tanh(logits)``; None without a classifier.
        weights: weights of the losses.
        centres: (C, K), the code of each class: see :mod:`centres`; needed if they have a weight.

    Raises:
        InputError: centres have a weight, and there are none.
    """
    relaxed = torch.tanh(logits)
    zero = logits.new_zeros(())
    counts = pair_weights(labels, weights.imbalance) if weights.imbalance else None
    pairwise = pairwise_loss(relaxed, similarity(labels), counts)
    quantisation = quantisation_loss(relaxed)
    classification = zero if scores is None else classification_loss(scores, labels)
    balance = balance_loss(relaxed)
    total = weights.pairwise * pairwise + weights.quantisation * quantisation + weights.classification * classification
    if weights.balance:
        total = total + weights.balance * balance
    if weights.centres:
        if centres is None:
            raise InputError(
                "the loss of centres has a weight, but this training knows no centres: leave --centres out"
            )
        towards = centre_loss(logits, centres_of_images(centres, labels))
        total = total + weights.centres * towards
    return Losses(total, pairwise, quantisation, classification, zero, balance, towards if weights.centres else zero)
