"""Backbones: any timm model that can return its feature levels, and a small VGG for 32x32 images."""

import difflib
import warnings
from dataclasses import dataclass
from typing import cast

import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn

from dmsh_serving.errors import InputError

__all__ = ["SMALL_VGG", "Backbone", "SmallVGG", "build_backbone", "check_features", "require_known"]

SMALL_VGG = "vgg_small"


class SmallVGG(nn.Module):
    """A VGG of eight 3x3 convolutions in five stages, for 32x32 images; 0.46 M weights.

    Feature level i is the output of stage i's last convolution (after BN and ReLU), as in timm's VGGs.
    """

    STAGES = ((16,), (32,), (64, 64), (96, 96), (128, 128))

    def __init__(self, levels: tuple[int, ...]) -> None:
        """Return the features of ``levels`` (stage indices, ascending); later stages are left out."""
        super().__init__()
        self.levels = levels
        stages: list[nn.Module] = []
        previous = 3
        for index, widths in enumerate(self.STAGES[: levels[-1] + 1]):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for width in widths:
                layers += [
                    nn.Conv2d(previous, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                previous = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image (N, 3, H, W) -> features (N, C_i, H_i, W_i) of each level."""
        features = []
        for index, stage in enumerate(self.stages):
            image = stage(image)
            if index in self.levels:
                features.append(image)
        return features


@dataclass(frozen=True)
class Backbone:
    """A built backbone: ``module`` maps an image to one feature map per tap; ``channels`` are their widths."""

    module: nn.Module
    taps: tuple[int, ...]
    channels: tuple[int, ...]


def build_backbone(name: str, taps: tuple[int, ...] | None) -> Backbone:
    """Build the backbone ``name`` with random weights, giving the feature levels ``taps``.

    Raises:
        InputError: no such backbone (the nearest names are offered), one without feature levels, or no such tap.
    """
    if name == SMALL_VGG:
        widths = tuple(stage[-1] for stage in SmallVGG.STAGES)
        taps = _checked_taps(name, taps, levels=len(widths), default=(2, 3, 4))
        return Backbone(SmallVGG(taps), taps, tuple(widths[tap] for tap in taps))
    require_known(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm announces its own renames here
        try:
            every_level = timm.create_model(name, pretrained=False, features_only=True)
            levels = cast(FeatureInfo, every_level.feature_info).get_dicts()
            taps = _checked_taps(name, taps, len(levels), _conv3_to_conv5(every_level))
            module = timm.create_model(name, pretrained=False, features_only=True, out_indices=taps)
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise InputError(f"backbone {name!r} cannot return its feature levels: {error}") from error
    return Backbone(module, taps, tuple(levels[tap]["num_chs"] for tap in taps))


def require_known(name: str) -> None:
    """Raise :class:`InputError`, with the nearest names, if ``name`` is no backbone."""
    if name != SMALL_VGG and not timm.is_model(name):
        choices = [SMALL_VGG, *timm.list_models()]
        nearest = difflib.get_close_matches(name, choices, n=4, cutoff=0.4) or ["vgg19", "resnet50"]
        raise InputError(f"unknown backbone {name!r}; nearest names: {', '.join(nearest)}")


def _conv3_to_conv5(module: nn.Module) -> tuple[int, ...]:
    """Return the last three levels that end in a convolution stage: conv3, conv4, conv5 in VGG and ResNet."""
    dicts = cast(FeatureInfo, module.feature_info).get_dicts()
    count = len(dicts)
    last = dict(module.named_modules()).get(dicts[-1]["module"].replace(".", "_"))
    if isinstance(last, nn.MaxPool2d):  # VGG's last level is only a pooling of conv5
        count -= 1
    return tuple(range(max(0, count - 3), count))


def _checked_taps(name: str, taps: tuple[int, ...] | None, levels: int, default: tuple[int, ...]) -> tuple[int, ...]:
    if taps is None:
        return default
    if not all(0 <= tap < levels for tap in taps):
        raise InputError(f"backbone {name!r} has feature levels 0 to {levels - 1}; taps = {list(taps)}")
    return tuple(sorted(taps))


def check_features(backbone: Backbone, name: str, image_size: int) -> None:
    """Try ``backbone`` on one image.

    Raises:
        InputError: it does not take images of this size, or its features are not maps (N, C, H, W).
    """
    was_training = backbone.module.training
    try:
        with torch.no_grad():
            features = backbone.module.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"backbone {name!r} does not take images of {image_size} pixels: {error}") from error
    finally:
        backbone.module.train(was_training)
    for tap, channels, feature in zip(backbone.taps, backbone.channels, features, strict=True):
        if feature.ndim != 4 or feature.shape[1] != channels or 0 in feature.shape:
            raise InputError(
                f"backbone {name!r} gives features {list(feature.shape)} at level {tap} for {image_size} pixels, "
                f"a DMSH network needs [1, {channels}, H, W]: choose a convolutional backbone or larger images"
            )
