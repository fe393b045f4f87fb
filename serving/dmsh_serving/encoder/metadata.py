"""What an encoder's ONNX file says of itself, read and checked in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dmsh_serving.codes import checked_bits
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = ["EncoderMetadata"]

_QUANTISED: Final = (b"QuantizeLinear", b"DequantizeLinear")  # operations of every quantised network


@dataclass(frozen=True)
class EncoderMetadata:
    """The ``metadata_props`` of one encoder.

    Attributes:
        fingerprint: its code space.
        bits: K of its codes.
        image_size: H = W of its images, in pixels.
        framing: how pictures become its images.
        parent_fingerprint: the code space that a low-precision encoder approximates.
        dialect: of an integer encoder, onnxruntime, tensorrt or openvino.
        precision: fp16, bf16, int8 or fp8, the precision of a low-precision encoder's trunk.
        known_answer: images and their codes (see :mod:`.known_answer`); a graph on its way
            to a compiler has none.
    """

    fingerprint: str
    bits: int
    image_size: int
    framing: Framing = field(default_factory=Framing)
    parent_fingerprint: str | None = None
    precision: str | None = None
    dialect: str | None = None
    known_answer: str | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, str], name: str) -> "EncoderMetadata":
        """Read ``props``; ``name`` is what an error calls the file.

        Raises:
            InputError: not made by dmsh-export, or damaged.
        """
        absent = [key for key in (Metadata.FINGERPRINT, Metadata.BITS, Metadata.IMAGE_SIZE) if key not in props]
        if absent:
            raise InputError(
                f"{name} was not made by dmsh-export: it has no {', '.join(absent)} in its metadata (a tool that "
                "changes the file must keep metadata_props)"
            )
        try:
            bits = checked_bits(_positive(props, Metadata.BITS))
            image_size = _positive(props, Metadata.IMAGE_SIZE)
            framing = Framing.parse(props.get(Metadata.FRAMING))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return cls(
            fingerprint=props[Metadata.FINGERPRINT],
            bits=bits,
            image_size=image_size,
            framing=framing,
            parent_fingerprint=props.get(Metadata.PARENT_FINGERPRINT),
            precision=props.get(Metadata.PRECISION),
            dialect=props.get(Metadata.DIALECT),
            known_answer=props.get(Metadata.KNOWN_ANSWER),
        )

    def require_own_fingerprint(self, data: bytes, name: str) -> None:
        """Refuse integers under the fingerprint of the float network that a tool made them from, metadata and all.

        Args:
            data: the file's bytes.
            name: what an error calls the file.

        Raises:
            InputError: a quantised network that names neither its dialect nor its parent fingerprint.
        """
        if self.dialect is None and self.parent_fingerprint is None and any(each in data for each in _QUANTISED):
            raise InputError(
                f"{name} holds integers and names no dialect, so its codes are not those of its fingerprint: export "
                "the integer checkpoint that dmsh-export quantize makes"
            )


def _positive(props: Mapping[str, str], key: str) -> int:
    text = props[key]
    # More than nine digits are no number of ours, and int() refuses the very long ones.
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise InputError(f"{key} must be a positive whole number, got {text[:40]!r}")
    return int(text)
