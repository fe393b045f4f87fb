"""The head of a network, trained on pooled taps: laterals, fusion, hash layer and classifier.

Mean pooling commutes with a lateral's 1x1 convolution and BN, so the network's own layers run on taps (N, C), and what
was trained is what the checkpoint holds. BN then normalises pooled values, whose variance is lower than that of
positions: in eval mode, where both are the same linear map, that makes no difference.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmsh_model.network import DMSH, Lateral, laterals_of
from dmsh_model.training.losses import Losses, total_loss
from dmsh_serving.errors import InputError

__all__ = ["PooledHead", "standardisation"]

_LEAST_DEVIATION = 1e-5  # as a share of the mean: less is float32's rounding of a constant


class PooledHead(nn.Module):
    """The layers of ``model`` behind its trunk, shared with it, under the same names. Taps (N, F) -> logits (N, K)."""

    def __init__(self, model: DMSH) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: its trunk is no part of this module
        self.laterals = model.laterals
        self.fusion = model.fusion
        self.hash = model.hash
        self.classifier = model.classifier
        self.channels = [lateral.conv.in_channels for lateral in laterals_of(model)]

    def forward(self, taps: Tensor) -> Tensor:
        """Taps (N, F) -> logits (N, K)."""
        model = self._model[0]
        parts = torch.split(taps, self.channels, 1)
        return model.fuse([_pooled(lateral, part) for lateral, part in zip(laterals_of(model), parts, strict=True)])

    def losses(self, taps: Tensor, labels: Tensor, noise: float, centres: Tensor | None) -> Losses:
        """Return the losses of a batch of standardised taps (N, F), moved by Gaussian noise of that deviation."""
        logits = self(taps + noise * torch.randn_like(taps) if noise else taps)
        scores = self.classifier(torch.tanh(logits)) if self.classifier else None
        return total_loss(logits, labels, scores, self._model[0].config.loss, centres)

    @torch.no_grad()
    def take_standardised(self, mean: Tensor, deviation: Tensor) -> None:
        """Change the laterals, trained on (taps - mean) / deviation, to give the same for the taps themselves.

        Args:
            mean: (F,) float64.
            deviation: (F,) float64, above 0.
        """
        for lateral, centre, spread in zip(
            laterals_of(self._model[0]),
            torch.split(mean, self.channels),
            torch.split(deviation, self.channels),
            strict=True,
        ):
            weight = lateral.conv.weight.double().flatten(1) / spread
            if lateral.norm.running_mean is not None:
                lateral.norm.running_mean += (weight @ centre).to(torch.float32)
            lateral.conv.weight.copy_(weight.to(torch.float32)[:, :, None, None])


def _pooled(lateral: Lateral, taps: Tensor) -> Tensor:
    """Taps (N, C) of one stage -> its lateral's pooled output (N, lateral_features).

    A matrix product: on maps of one position PyTorch's convolution takes 2.5 times as long.
    """
    projected = F.linear(taps, lateral.conv.weight.flatten(1))
    return cast(Tensor, lateral.norm(projected[:, :, None, None])).flatten(1)


def standardisation(taps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each feature of ``taps`` (N, F), both (F,) float64; a constant one's deviation is 1.

    Raises:
        InputError: no feature differs between the images.
    """
    deviation, mean = torch.std_mean(taps.double(), 0, correction=0)
    varying = deviation > _LEAST_DEVIATION * mean.abs()
    if not varying.any():
        raise InputError("the trunk gives the same features for all images: are they all alike, or of one colour?")
    return mean, torch.where(varying, deviation, 1.0)
