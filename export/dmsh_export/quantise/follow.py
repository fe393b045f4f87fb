"""The integers of the head, moved until its codes follow the float network's; no labels are needed.

Regression finds real weights that come nearest on average. What counts is the head after rounding, and there what lies
near 0: an error of a logit far from it changes no bit. Gradient descent on the integer head itself, as in fine-tuning,
sees both.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from dmsh_model.finetune.network import TrainableIntegerNetwork
from dmsh_model.integer.network import IntegerNetwork

__all__ = ["followed"]

_STEPS: Final = 600
_BATCH: Final = 64  # images
_RATE: Final = 1e-3  # peak of the learning rate, in units of 128 steps of a weight


def followed(network: IntegerNetwork, pooled: npt.NDArray[np.int8], target: npt.NDArray[np.float64]) -> IntegerNetwork:
    """Return ``network`` with another head: its relaxed codes are nearer to the target's on these images.

    Args:
        network: every accumulator of its head is below 2^24.
        pooled: what the head takes in, (N, C); see :func:`dmsh_model.integer.reference.features`.
        target: the float network's logits, (N, K).
    """
    trainable = TrainableIntegerNetwork(network, head_only=True)
    optimiser = torch.optim.Adam(trainable.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    inputs, wanted = torch.from_numpy(pooled).to(torch.float32), torch.from_numpy(target).tanh().to(torch.float32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        rows = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
        loss = F.mse_loss(torch.tanh(trainable(inputs[rows])), wanted[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        trainable.constrain()
    return trainable.network()
