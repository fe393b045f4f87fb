"""Whether this machine's Pillow decodes and resizes as the one that every gallery's codes were made with.

The rules of :mod:`.decode` are integer arithmetic, but Pillow and the decoders below it do that arithmetic. Another
release, or a build on another libjpeg, may round otherwise: the same file would get another code than the gallery has.
"""

import functools
import hashlib
from importlib import resources
from itertools import product
from typing import Final

import PIL

from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.decode import FORMATS, image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import CROPS, DECODE_RULES, INTERPOLATIONS, Framing

__all__ = ["check_decoder"]

_SIZE: Final = 13  # a JPEG of the files is scaled to it by its own decoder, then resampled
# SHA-256 of a file's pixels, then of its images by every framing.
_KNOWN: Final = {
    "photo.jpg": "796bfc7a9fa5c67c72a0213fb1b6c9412b410a0316f7442c1c8ed892c7be8ff9",
    "progressive.jpg": "6c4baf492fe37d58f26d8d7eab99bc8a873418e35b96dcd16728e24c61e6db46",
    "cmyk.jpg": "cd4789753e04b70c9d0ab5e8fb912d6437ea0c73c1a69c86eedf8a6513ef14c9",
    "photo.webp": "b2b0c0e769ad312e14d74800a2b0bbc759cd507b83c5256734f5197c0bcf29b0",
    "photo.avif": "e3b85386bfc7df2548d626d6d3ba4e6d6dc32fa86bd4495d09dd1a10dffefef1",
    "deep.png": "f720a738638048d7a6b919c4a684b62f2d2f0be31c8661f0db764a2f7f239392",
    "transparent.png": "00d5ef7a1eeda90d4c75cd3f9688d8f6125fadd340212d97c52ea446399c43ec",
}


@functools.cache
def check_decoder() -> None:
    """Decode the files that come with this package, once per process, and compare every pixel.

    Raises:
        CheckError: some pixel is another one.
    """
    for name in _KNOWN:
        if name == "photo.avif" and "AVIF" not in FORMATS:
            continue
        if _digest_of(name) != _KNOWN[name]:
            raise CheckError(
                f"Pillow {PIL.__version__} makes other pixels of {name} than those that codes are made of, or none: "
                "install the one that pip finds, pip install --force-reinstall pillow"
            )


def _digest_of(name: str) -> str | None:
    data = resources.files("dmsh_serving.images").joinpath("known", name).read_bytes()
    try:
        digest = hashlib.sha256(rgb_from_bytes(data, name=name).tobytes())
    except InputError:
        return None
    for crop, interpolation, rule in product(CROPS, INTERPOLATIONS, DECODE_RULES):
        framing = Framing(crop, interpolation, rule)
        digest.update(image_from_bytes(data, _SIZE, framing, name=name).tobytes())
    return digest.hexdigest()
