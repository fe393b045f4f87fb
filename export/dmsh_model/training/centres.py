"""Central similarity: each class has its own code, far from the other classes' codes; its images learn codes near it.

Yuan, Wang, Zhang, Tay, Jie, Liu, Feng, "Central Similarity Quantization for Efficient Image and Video Retrieval"
(CSQ), CVPR 2020; https://arxiv.org/abs/1908.00347. Rows of a Hadamard matrix and their negatives differ in at least
half of their bits. If the number of bits is no power of two, or there are more classes than such rows, the paper draws
bits at random. Here such codes are drawn one after the other, each farther from those before it than many others.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Centres", "centre_loss", "centres_of_images", "hash_centres"]

Centres = npt.NDArray[np.int8]

_DRAWS = 200


def hash_centres(classes: int, bits: int) -> Centres:
    """Return the code of every class, (classes, bits) int8 of -1 and 1; the same arguments, the same codes.

    Args:
        classes: number of classes, at least 1.
        bits: bits per code, at least 1.
    """
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        rows = np.ones((1, 1), np.int8)
        while len(rows) < bits:
            rows = np.block([[rows, rows], [rows, -rows]])  # Sylvester's construction
        return np.concatenate([rows, -rows])[:classes]
    return _drawn(classes, bits)


def _drawn(classes: int, bits: int) -> Centres:
    # RandomState's stream never changes between NumPy releases (NEP 19): a resumed training meets the same centres.
    random = np.random.RandomState(0)
    halves = np.where(np.arange(bits) < bits // 2, -1, 1).astype(np.int8)  # as often -1 as 1, as the bits should be
    chosen = np.empty((classes, bits), np.int8)
    for row in range(classes):
        candidates = np.stack([random.permutation(halves) for _ in range(_DRAWS)])
        likest = (candidates.astype(np.int32) @ chosen[:row].T.astype(np.int32)).max(1, initial=-bits)
        chosen[row] = candidates[likest.argmin()]
    return chosen


def centres_of_images(centres: Tensor, labels: Tensor) -> Tensor:
    """Return the code that each image should have, (N, K) of -1 and 1.

    With several labels each bit is the majority of their centres; if they tie, it is the first label's.

    Args:
        centres: (C, K) of -1 and 1.
        labels: (N,) int64 classes, or (N, C) multi-hot, at least one label each.
    """
    if labels.ndim == 1:
        return centres[labels]
    votes = (labels.to(torch.float32) @ centres.to(torch.float32)).sign()
    return torch.where(votes == 0, centres[labels.to(torch.uint8).argmax(1)].to(votes.dtype), votes)


def centre_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy of the bits (N, K) against the centres' (N, K) of -1 and 1: CSQ, equation 4.

    The probability of a 1 is (tanh(logit) + 1) / 2 = sigmoid(2 logit), taken in the form that cannot overflow.
    """
    return F.binary_cross_entropy_with_logits(2 * logits, (targets.to(logits.dtype) + 1) / 2)
