"""How an upright picture of any shape becomes a square image: what of it is kept, and the filter that resamples it."""

from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from dmsh_serving.errors import InputError

__all__ = ["CROPS", "INTERPOLATIONS", "Crop", "Framing", "Interpolation"]

Crop = Literal["centre", "pad"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
CROPS: Final[tuple[Crop, ...]] = get_args(Crop)
INTERPOLATIONS: Final[tuple[Interpolation, ...]] = get_args(Interpolation)

_RECIPES: Final[dict[Crop, str]] = {"centre": "central square", "pad": "whole picture centred on white"}


@dataclass(frozen=True)
class Framing:
    """Part of a checkpoint's preprocessing, and so of its fingerprint.

    ``str(framing)`` is what files keep, for example "centre bicubic"; :meth:`parse` reads it.

    Attributes:
        crop: ``centre`` keeps the central square, its side the picture's short side. ``pad`` keeps the whole picture:
            its long side becomes the image's side, and what is missing is white.
        interpolation: Pillow's filter.
    """

    crop: Crop = "centre"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        """Refuse what is not one of the choices, naming them."""
        chosen = (("crop", self.crop, CROPS), ("interpolation", self.interpolation, INTERPOLATIONS))
        problems = [
            f"{name} = {value!r} must be one of {', '.join(choices)}"
            for name, value, choices in chosen
            if value not in choices
        ]
        if problems:
            raise InputError("; ".join(problems))

    def __str__(self) -> str:
        return f"{self.crop} {self.interpolation}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises:
            InputError: anything else.
        """
        crop, _, interpolation = text[:40].partition(" ")
        return cls(crop, interpolation)  # type: ignore[arg-type]  # checked there

    @property
    def recipe(self) -> str:
        """The rule in words, as fingerprints have it."""
        return f"{_RECIPES[self.crop]}, pillow {self.interpolation}"
