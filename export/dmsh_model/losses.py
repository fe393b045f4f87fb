"""Training losses: similar images get similar codes, codes are nearly binary, classes can be told from codes.

All three act on the relaxed code u = tanh(logits), each bit in (-1, 1).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsh_model.config import LossWeights
from dmsh_serving.errors import InputError

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


def pairwise_loss(relaxed: Tensor, similar: Tensor) -> Tensor:
    """Negative log likelihood of the pairs' similarity: the mean of log(1 + exp(theta)) - s theta over i != j.

    theta = (u_i . u_j) / 2, scaled to the range it has at 16 bits. Li, Wang, Kang, "Feature Learning based Deep
    Supervised Hashing with Pairwise Labels" (DPSH), IJCAI 2016, equation 2; https://arxiv.org/abs/1511.03855.

    Args:
        relaxed: (N, K) float, N >= 2.
        similar: (N, N) bool.
    """
    count, bits = relaxed.shape
    theta = relaxed @ relaxed.T * (0.5 * _REFERENCE_BITS / bits)
    likelihood = F.softplus(theta) - similar.to(theta.dtype) * theta
    other = ~torch.eye(count, dtype=torch.bool, device=relaxed.device)
    return likelihood[other].mean()


def quantisation_loss(relaxed: Tensor) -> Tensor:
    """Mean of (|u| - 1)^2 over (N, K): the squared distance to the nearest binary code.

    Zhu, Long, Wang, Cao, "Deep Hashing Network for Efficient Similarity Retrieval" (DHN), AAAI 2016, has the same
    prior in a smooth form; the squared one is DPSH's. https://ojs.aaai.org/index.php/AAAI/article/view/10235
    """
    return (relaxed.abs() - 1).square().mean()


def classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of class scores (N, C) with (N,) int64 classes, or of each label with (N, C) multi-hot ones."""
    if labels.ndim == 1:
        return F.cross_entropy(scores, labels)
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))


def distillation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean square distance of logits (N, K) from a teacher's, ``target``, as a share of the teacher's own power."""
    return (logits - target).square().mean() / target.square().mean()


def total_loss(logits: Tensor, labels: Tensor, scores: Tensor | None, weights: LossWeights) -> Losses:
    """Compute every part that labels give and their weighted sum; distillation, which needs a teacher, is 0.

    Args:
        logits: (N, K) float, N >= 2.
        labels: (N,) int64 classes, or (N, C) multi-hot.
        scores: (N, C) float, the linear classifier's output for ``tanh(logits)``; None where there is no classifier.
        weights: of the three parts.
    """
    relaxed = torch.tanh(logits)
    pairwise = pairwise_loss(relaxed, similarity(labels))
    quantisation = quantisation_loss(relaxed)
    classification = logits.new_zeros(()) if scores is None else classification_loss(scores, labels)
    total = weights.pairwise * pairwise + weights.quantisation * quantisation + weights.classification * classification
    return Losses(total, pairwise, quantisation, classification, logits.new_zeros(()))
