"""The DMSH network.

From the paper (Redaoui, Belloulata, Belalia, "Deep Multi-Scale Hashing for Image Retrieval", ICAITA 2022; public
as an abstract): features of several convolutional layers are extracted, fused, and hashed to a short binary code.
From its authors' later papers: VGG-19 with codes from several scales (DFPH, 2023); ResNet-50 with the last layers of
conv3, conv4 and conv5 (MDFF-SH, 2025).
Our choices: the lateral 1x1 convolution with BN and the global pooling per scale, concatenation, one fusion layer with
ReLU, a linear hash layer; widths, losses and their weights; normalisation as part of the network.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dmsh_model.backbone import build_backbone, check_features
from dmsh_model.config import Activation, HashConfig, Pooling
from dmsh_model.fingerprint import float_fingerprint
from dmsh_serving.checks import check_images
from dmsh_serving.codes import Codes, pack

__all__ = ["DMSH", "Images", "Lateral", "Normalise", "global_pool", "laterals_of"]

Images = npt.NDArray[np.uint8]

_BATCH = 64
_PIXELS_IN_CACHE = 16 * 128 * 128


class Normalise(nn.Module):
    """UINT8 [N, H, W, 3] RGB -> FP32 [N, 3, H, W] with zero mean and unit variance per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Permute, cast and normalise."""
        return (image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std


class Lateral(nn.Module):
    """One scale: 1x1 convolution, BN, activation, then global pooling. (N, C, H, W) -> (N, features)."""

    def __init__(self, channels: int, features: int, activation: Activation, pooling: Pooling) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, features, 1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.activation = build_activation(activation)
        self.pooling = pooling

    def forward(self, feature: Tensor) -> Tensor:
        """Project, activate, pool."""
        return global_pool(self.activation(self.norm(self.conv(feature))), self.pooling)


def laterals_of(model: "DMSH") -> list[Lateral]:
    """Return the laterals of ``model``, with their type."""
    return [lateral for lateral in model.laterals if isinstance(lateral, Lateral)]


def global_pool(feature: Tensor, pooling: Pooling) -> Tensor:
    """(N, C, H, W) -> (N, C): the mean or the maximum over all positions."""
    return feature.mean((2, 3)) if pooling == "avg" else feature.amax((2, 3))


def build_activation(name: Activation) -> nn.Module:
    """Return the module of an activation's name."""
    modules: dict[Activation, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}
    return modules[name]()


class DMSH(nn.Module):
    """Image UINT8 [N, H, W, 3] -> logits FP32 [N, K]; bit j of a code is 1 where logit j > 0."""

    def __init__(self, config: HashConfig) -> None:
        """Build with random weights.

        Raises:
            InputError: no such backbone or tap, or one that gives no feature maps at this image size.
        """
        super().__init__()
        self.config = config
        backbone = build_backbone(config.backbone, config.taps)
        check_features(backbone, config.backbone, config.image_size)
        self.taps = backbone.taps
        self.normalise = Normalise(config.mean, config.std)
        self.backbone = backbone.module
        self.laterals = nn.ModuleList(
            Lateral(channels, config.lateral_features, config.lateral_activation, config.pooling)
            for channels in backbone.channels
        )
        self.fusion = nn.Linear(config.lateral_features * len(backbone.channels), config.fusion_features)
        self.fusion_activation = build_activation(config.fusion_activation)
        self.hash = nn.Linear(config.fusion_features, config.bits)
        # Used by the classification loss alone; no part of a code.
        self.classifier = nn.Linear(config.bits, config.num_classes) if config.num_classes else None

    @property
    def fingerprint(self) -> str:
        """The name of the code space, computed at each call; see :mod:`dmsh_model.fingerprint`."""
        return float_fingerprint(self.config, self.taps, self.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        """Image UINT8 [N, H, W, 3] -> logits [N, K]."""
        return self.head(self.features(image))

    def features(self, image: Tensor) -> list[Tensor]:
        """Image UINT8 [N, H, W, 3] -> one feature map (N, C_i, H_i, W_i) per tap."""
        return cast(list[Tensor], self.backbone(self.normalise(image)))

    def head(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (N, C_i, H_i, W_i) -> logits [N, K].

        With average pooling and no lateral activation, the pooled maps (N, C_i, 1, 1) give the same logits.
        """
        return self.fuse([lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)])

    def fuse(self, scales: Sequence[Tensor]) -> Tensor:
        """Pooled outputs of the laterals, (N, lateral_features) each -> logits [N, K]."""
        return cast(Tensor, self.hash(self.fusion_activation(self.fusion(torch.cat(tuple(scales), 1)))))

    @torch.inference_mode()
    def logits(self, images: Images, batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Images (N, H, W, 3) uint8 -> logits (N, K) float32, in eval mode, ``batch_size`` images at a time.

        None takes 64, on a CPU fewer if they are large: maps that stay in its caches take half the time.

        Raises:
            InputError: wrong dtype or shape.
        """
        check_images(images, self.config.image_size)
        was_training = self.training
        self.eval()
        device = self.hash.weight.device
        if batch_size is None:
            fitting = _PIXELS_IN_CACHE // self.config.image_size**2 if device.type == "cpu" else _BATCH
            batch_size = max(1, min(_BATCH, fitting))
        out = np.empty((len(images), self.config.bits), np.float32)
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
            out[start : start + batch_size] = self(batch).cpu().numpy()
        self.train(was_training)
        return out

    def codes(self, images: Images, batch_size: int | None = None) -> Codes:
        """Images (N, H, W, 3) uint8 -> codes (N, ceil(K/8)) uint8: the reference every artefact is held against.

        Raises:
            InputError: wrong dtype or shape, or a logit that is NaN or infinite.
        """
        return pack(self.logits(images, batch_size))
