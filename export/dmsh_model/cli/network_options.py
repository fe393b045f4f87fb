"""Options of ``dmsh-train fit`` that say what the network is, and how a picture becomes its input."""

from dataclasses import dataclass
from typing import Annotated, Any

from dmsh_model.cli.options import option
from dmsh_model.weights.packages import network_named_by
from dmsh_serving.commands import Flags
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Crop, Interpolation

__all__ = ["Network", "NetworkFlags", "Preprocessing", "PreprocessingFlags"]

_WIDTHS, _PREPROCESSING = "Widths of the network", "Preprocessing, part of the checkpoint"


@dataclass(frozen=True)
class Network:
    """The fields of :class:`~dmsh_model.config.HashConfig` that the user chooses; the images decide the others."""

    bits: int = 64
    backbone: str | None = None
    image_size: int | None = None
    lateral_features: int = 64
    fusion_features: int | None = None

    def fields(self, pretrained: str | None) -> dict[str, Any]:
        """Return fields of :class:`~dmsh_model.config.HashConfig`; what is not chosen suits the weights, if any."""
        usual: dict[str, Any] = {"backbone": "vgg_small", "image_size": 32, "fusion_features": 128}
        if pretrained:
            usual = {"backbone": network_named_by(pretrained), "image_size": 128, "fusion_features": 512}
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        if pretrained and not (usual | chosen)["backbone"]:
            raise InputError(f"--pretrained {pretrained}: say which network its weights are of, as --backbone NAME")
        return usual | chosen


NetworkFlags = Annotated[
    Network,
    Flags(
        bits=option("--bits", None, "Bits per code."),
        backbone=option(
            "--backbone",
            None,
            "Any timm model with feature levels, or vgg_small.  [default: that of --pretrained, else vgg_small]",
        ),
        image_size=option(
            "--image-size", None, "Side of an image, in pixels.  [default: 128 with --pretrained, else 32]"
        ),
        lateral_features=option("--lateral-features", _WIDTHS, "Features per scale."),
        fusion_features=option(
            "--fusion-features", _WIDTHS, "Features of the fusion layer.  [default: 512 with --pretrained, else 128]"
        ),
    ),
]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input; None is what the weights were trained with, or the usual."""

    crop: Crop = "centre"
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of :class:`~dmsh_model.config.HashConfig` that are chosen."""
        return {name: value for name, value in vars(self).items() if value is not None}


PreprocessingFlags = Annotated[
    Preprocessing,
    Flags(
        crop=option(
            "--crop",
            _PREPROCESSING,
            "centre keeps the central square of a picture, pad the whole picture, centred on white.",
        ),
        interpolation=option(
            "--interpolation", _PREPROCESSING, "Filter that resizes.  [default: that of --pretrained, else bicubic]"
        ),
        mean=option(
            "--mean",
            _PREPROCESSING,
            "Mean of red, green and blue, 0 to 1: three numbers.  [default: that of --pretrained, else ImageNet's]",
        ),
        std=option("--std", _PREPROCESSING, "Deviation of red, green and blue, likewise."),
    ),
]
