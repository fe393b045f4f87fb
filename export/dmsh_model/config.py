"""What a DMSH network is made of, as one frozen value that travels with its weights."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import CROPS, DECODE_RULES, INTERPOLATIONS, Crop, Framing, Interpolation

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Activation", "HashConfig", "LossWeights", "Pooling"]

Activation = Literal["none", "relu", "tanh"]
Pooling = Literal["avg", "max"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_FEATURES = 1 << 16  # of a layer: far beyond every network; far below what a mistaken config would allocate
_LARGEST_IMAGE = 4096  # pixels a side, as a decoder makes at most


@dataclass(frozen=True)
class LossWeights:
    """Weights of the training losses; see :mod:`dmsh_model.training.losses`.

    ``imbalance`` is not the weight of a loss. At 0 every pair counts alike in the pairwise loss; at 1 all similar pairs
    count as much as all dissimilar ones, of which there are many more.
    """

    pairwise: float = 1.0
    quantisation: float = 0.1
    classification: float = 1.0
    balance: float = 0.0
    centres: float = 0.0
    imbalance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative and non-finite weights, and an imbalance above 1."""
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"config: loss weight {name} = {value} must be 0 or more, and finite")
        if self.imbalance > 1:
            raise InputError(f"config: loss weight imbalance = {self.imbalance} must be 0 to 1")


@dataclass(frozen=True)
class HashConfig:
    """A DMSH network: ``backbone`` features at ``taps``, one lateral per scale, fusion layer, hash layer.

    ``taps`` are indices into the backbone's feature levels (timm ``feature_info``); None means the last
    layers of the conv3, conv4 and conv5 stages. ``mean`` and ``std`` are in units of 0..1 RGB; ``crop`` and
    ``interpolation`` and ``decode_rule`` say how pictures become images, see
    :class:`~dmsh_serving.images.framing.Framing`.
    ``num_classes`` sizes the training-only classifier; 0 leaves it out.
    """

    backbone: str = "vgg19"
    bits: int = 64
    image_size: int = 224
    taps: tuple[int, ...] | None = None
    lateral_features: int = 256
    lateral_activation: Activation = "none"
    pooling: Pooling = "avg"
    fusion_features: int = 512
    fusion_activation: Activation = "relu"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: Crop = "centre"
    interpolation: Interpolation = "bicubic"
    decode_rule: int = DECODE_RULES[-1]
    num_classes: int = 0
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        """Refuse what no network can be built from, naming every wrong field at once."""
        from dmsh_serving.codes import checked_bits

        checked_bits(self.bits)
        wholes = ("bits", "image_size", "lateral_features", "fusion_features", "num_classes")
        problems = [
            f"{name} = {getattr(self, name)} must be a whole number"
            for name in wholes
            if type(getattr(self, name)) is not int  # a bool is an int too
        ]
        problems += [
            f"{name} = {getattr(self, name)} must be at least {least}"
            for name, least in (
                ("image_size", 16),
                ("lateral_features", 1),
                ("fusion_features", 1),
                ("num_classes", 0),
            )
            if getattr(self, name) < least
        ]
        problems += [
            f"{name} = {getattr(self, name)} must be at most {most}"
            for name, most in (
                ("image_size", _LARGEST_IMAGE),
                ("lateral_features", _MOST_FEATURES),
                ("fusion_features", _MOST_FEATURES),
                ("num_classes", _MOST_FEATURES),
            )
            if getattr(self, name) > most
        ]
        for name, choices in (
            ("lateral_activation", get_args(Activation)),
            ("fusion_activation", get_args(Activation)),
            ("pooling", get_args(Pooling)),
            ("crop", CROPS),
            ("interpolation", INTERPOLATIONS),
            ("decode_rule", DECODE_RULES),
        ):
            if getattr(self, name) not in choices:
                problems.append(f"{name} = {getattr(self, name)!r} must be one of {', '.join(map(str, choices))}")
        if not isinstance(self.backbone, str):
            problems.append(f"backbone = {self.backbone} must be a name")
        if self.taps is not None and not (
            self.taps and len(set(self.taps)) == len(self.taps) and all(isinstance(tap, int) for tap in self.taps)
        ):
            problems.append(f"taps = {list(self.taps)} must name at least one level, each once")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            problems.append("mean and std must have three values each, std above 0")
        elif not all(0 <= value <= 1 for value in (*self.mean, *self.std)):
            problems.append(f"mean = {self.mean} and std = {self.std} must be 0 to 1: a value of 255 counts as 1")
        if problems:
            raise InputError("config: " + "; ".join(problems))

    @property
    def framing(self) -> Framing:
        """How pictures become images."""
        return Framing(self.crop, self.interpolation, self.decode_rule)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HashConfig":
        """Read what :meth:`to_dict` wrote. Unknown fields and wrong types are errors, each named.

        A config that names no ``decode_rule`` is of the time when there was one alone: it keeps that one.
        """
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"config: unknown fields {', '.join(unknown)}; known are {', '.join(known)}")
        try:
            values = {"decode_rule": DECODE_RULES[0], **values}
            for name in ("taps", "mean", "std"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            if "loss" in values:
                values["loss"] = LossWeights(**values["loss"])
            return cls(**values)
        except TypeError as error:
            raise InputError(f"config: a field has a wrong type ({error})") from error
