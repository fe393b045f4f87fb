"""How the picture in a file becomes a square image: what of it is decoded and kept, and the filter that resizes it.

The same file gives other pixels by another framing, so other codes. A checkpoint, an ONNX file and a served decoder
each name the framing that they were made for, and whoever decodes for them decodes by it.
"""

from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from dmsh_serving.errors import InputError

__all__ = ["CROPS", "DECODE_RULES", "INTERPOLATIONS", "Crop", "Framing", "Interpolation"]

Crop = Literal["centre", "pad"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]
CROPS: Final[tuple[Crop, ...]] = get_args(Crop)
INTERPOLATIONS: Final[tuple[Interpolation, ...]] = get_args(Interpolation)

DECODE_RULES: Final = (1, 2)  # the newest last

_RECIPES: Final[dict[Crop, str]] = {"centre": "central square", "pad": "whole picture centred on white"}


@dataclass(frozen=True)
class Framing:
    """Part of a checkpoint's preprocessing, and so of its fingerprint.

    ``str(framing)`` is what files keep, for example "centre bicubic 2"; :meth:`parse` reads it.

    Attributes:
        crop: ``centre`` keeps the central square, its side the picture's short side. ``pad`` keeps the whole picture:
            its long side becomes the image's side, and what is missing is white.
        interpolation: Pillow's filter.
        decode_rule: the version of the rules by which the file is decoded. By 1 every pixel of a JPEG is; by 2 its
            decoder leaves out detail that the resize would remove (see :mod:`dmsh_serving.images.decode`).
    """

    crop: Crop = "centre"
    interpolation: Interpolation = "bicubic"
    decode_rule: int = DECODE_RULES[-1]

    def __post_init__(self) -> None:
        """Refuse what is not one of the choices, naming them."""
        chosen: tuple[tuple[str, object, tuple[object, ...]], ...] = (
            ("crop", self.crop, CROPS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("decode_rule", self.decode_rule, DECODE_RULES),
        )
        problems = [
            f"{name} = {value!r} must be one of {', '.join(map(str, choices))}"
            for name, value, choices in chosen
            if value not in choices or isinstance(value, bool)
        ]
        if problems:
            raise InputError("; ".join(problems))

    def __str__(self) -> str:
        first = self.decode_rule == DECODE_RULES[0]
        return f"{self.crop} {self.interpolation}" + ("" if first else f" {self.decode_rule}")

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what ``str`` wrote; None means a file from before framings were recorded: decode rule 1.

        Raises:
            InputError: anything else.
        """
        if text is None:
            return cls(decode_rule=DECODE_RULES[0])
        crop, _, rest = text[:40].partition(" ")
        interpolation, _, rule = rest.partition(" ")
        known: dict[str, int] = {"": DECODE_RULES[0], **{str(each): each for each in DECODE_RULES}}
        return cls(crop, interpolation, known.get(rule, rule))  # type: ignore[arg-type]  # checked there

    @property
    def recipe(self) -> str:
        """What is kept and how it is resized, in words, as fingerprints have it."""
        return f"{_RECIPES[self.crop]}, pillow {self.interpolation}"

    def least_side(self, image_size: int) -> int | None:
        """Return how long both sides of a JPEG must stay if its decoder scales it; None if it must not scale."""
        return None if self.decode_rule == DECODE_RULES[0] else 2 * image_size
