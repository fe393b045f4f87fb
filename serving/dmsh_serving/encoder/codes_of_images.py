"""A folder of images -> the codes of an ONNX model, with the images' names: what a gallery is built from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmsh_serving.codes import Codes
from dmsh_serving.encoder.base import Encoder
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import ImageSet, Progress, iter_image_batches

__all__ = ["EncodedImages", "codes_of_images", "codes_of_set"]


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """The codes of images and what they belong to.

    Attributes:
        codes: (N, ceil(bits/8)) uint8.
        names: N names, as :class:`dmsh_serving.images.read.ImageSet` has them.
        bad: one line for each image that was left out.
        bits: bits per code.
        fingerprint: of the model's code space.
    """

    codes: Codes
    names: list[str]
    bad: tuple[str, ...]
    bits: int
    fingerprint: str


def codes_of_images(
    model: Path, source: Path, batch: int, *, skip_bad: bool = False, on_progress: Progress | None = None
) -> EncodedImages:
    """Encode every image of ``source``, ``batch`` images at a time, while the next batch is decoded.

    Arguments are those of :func:`dmsh_serving.images.read.iter_image_batches`; ``model`` is an ONNX file of
    dmsh-export.

    Raises:
        InputError: also if the model gives NaN or Inf for an image; the image is named.
    """
    codes: list[Codes] = []
    names: list[str] = []
    bad: list[str] = []
    with open_encoder(model) as encoder:
        for part in iter_image_batches(
            source, encoder.image_size, batch, encoder.framing, skip_bad=skip_bad, on_progress=on_progress
        ):
            bad += part.bad
            names += part.names
            if len(part.images):
                codes.append(codes_of_set(encoder, part))
        return EncodedImages(np.concatenate(codes), names, tuple(bad), encoder.bits, encoder.fingerprint)


def codes_of_set(encoder: Encoder, images: ImageSet) -> Codes:
    """Return the codes (N, ceil(bits/8)) uint8 of N images.

    Raises:
        InputError: the model gives NaN or Inf for an image; the image is named.
    """
    encoded = encoder.infer(images.images)
    finite = np.isfinite(encoded.logits).all(axis=1)
    if not finite.all():
        name = images.names[int(finite.argmin())]
        raise InputError(f"{encoder.path} gives NaN or Inf for {name}: no code can be made of it")
    return encoded.code
