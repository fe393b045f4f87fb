"""The canary: one image file whose code is known, carried by the repository, to be searched for in a running server.

It is the first image of the encoder's known answer, as a PNG of the encoder's own size, which decoding gives back as it
is. The decoder's configuration carries it, so that whoever reaches a server can ask for it, in NVIDIA's container too.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image

from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import InputError

__all__ = ["Canary"]

_FILE: Final = "canary_file"
_CODE: Final = "canary_code"


@dataclass(frozen=True)
class Canary:
    """An image file and the code that its search must give, B bytes; without a code, any answer is right."""

    file: bytes
    code: bytes | None

    @classmethod
    def of_known_answer(cls, text: str) -> "Canary":
        """Return the canary of a known answer, as ``Metadata.KNOWN_ANSWER`` has it.

        Raises:
            InputError: the text is none.
        """
        images, codes = known_answer.load(text)
        return cls(_png(Image.fromarray(images[0])), codes[0].tobytes())

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Canary":
        """Return what the decoder's configuration carries; a grey image of no known code if it carries none.

        Raises:
            InputError: what it carries is damaged.
        """
        if _FILE not in parameters:
            return cls(_png(Image.new("RGB", (8, 8), (128, 128, 128))), None)
        try:
            return cls(base64.b64decode(parameters[_FILE], validate=True), bytes.fromhex(parameters[_CODE]))
        except (binascii.Error, ValueError, KeyError) as error:
            raise InputError(f"the canary of the repository is damaged ({error}): write the repository again") from None

    def parameters(self) -> dict[str, str]:
        """Return what the decoder's configuration carries of it."""
        if self.code is None:
            return {}
        return {_FILE: base64.b64encode(self.file).decode(), _CODE: self.code.hex()}

    def differing_bits(self, code: bytes) -> int:
        """Return how many bits of ``code`` are not the known ones."""
        if self.code is None:
            return 0
        if len(code) != len(self.code):
            return 8 * max(len(code), len(self.code))
        return (int.from_bytes(code) ^ int.from_bytes(self.code)).bit_count()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
