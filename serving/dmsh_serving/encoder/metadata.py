"""What an encoder's ONNX file says of itself, read and checked in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dmsh_serving.codes import checked_bits
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.props import graph_sha256
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = ["EncoderMetadata"]

_ROUNDED: Final = ("fp16", "bf16", "fp8")


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
        graph_sha256: of the graph as dmsh-export wrote it.
    """

    fingerprint: str
    bits: int
    image_size: int
    framing: Framing = field(default_factory=Framing)
    parent_fingerprint: str | None = None
    precision: str | None = None
    dialect: str | None = None
    known_answer: str | None = None
    graph_sha256: str | None = None

    @classmethod
    def from_props(cls, props: Mapping[str, str], name: str) -> "EncoderMetadata":
        """Read ``props``; ``name`` is what an error calls the file.

        Raises:
            InputError: not made by dmsh-export, or damaged.
        """
        absent = [key for key in (Metadata.FINGERPRINT, Metadata.BITS, Metadata.IMAGE_SIZE) if key not in props]
        if absent:
            raise InputError(f"{name} was not made by dmsh-export: it has no {', '.join(absent)} in its metadata")
        try:
            bits = checked_bits(_positive(props, Metadata.BITS))
            image_size = _positive(props, Metadata.IMAGE_SIZE)
            framing = Framing.parse(props.get(Metadata.FRAMING))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        fingerprint, precision = props[Metadata.FINGERPRINT], props.get(Metadata.PRECISION)
        parent = props.get(Metadata.PARENT_FINGERPRINT)
        # An integer network's TensorRT dialect says int8 and has no parent: its codes are the network's own.
        is_low = parent is not None or precision in _ROUNDED
        if is_low and (precision is None or parent in (None, fingerprint)):
            raise InputError(
                f"{name} is of the precision {precision} and approximates the code space {parent}, which does not fit "
                "together: low precisions are made by dmsh-export trt"
            )
        return cls(
            fingerprint=fingerprint,
            bits=bits,
            image_size=image_size,
            framing=framing,
            parent_fingerprint=parent,
            precision=precision,
            dialect=props.get(Metadata.DIALECT),
            known_answer=props.get(Metadata.KNOWN_ANSWER),
            graph_sha256=props.get(Metadata.GRAPH_SHA256),
        )

    def check_encodes(self, name: str) -> None:
        """Refuse the graph of a low-precision plan, whose codes the plan alone gives; an error calls the file ``name``.

        Raises:
            InputError: it is one.
        """
        if self.parent_fingerprint is not None:
            raise InputError(
                f"{name} is the {self.precision} graph of a TensorRT plan, and any other runtime rounds otherwise: "
                "encode with the plan's server (SearchClient.encode), or take the float32 or integer model"
            )

    def check_graph(self, data: bytes, name: str) -> None:
        """Refuse the file with the bytes ``data`` if its graph is not the exported one; an error calls it ``name``.

        Other tools keep the metadata when they change a graph. Quantised or halved it has other codes, and the few of
        the known answer may yet be right.

        Raises:
            InputError: the graph was changed, or the metadata does not say which it was.
        """
        if self.graph_sha256 is None:
            raise InputError(f"{name} has no {Metadata.GRAPH_SHA256} in its metadata: export the model again")
        if graph_sha256(data, name) != self.graph_sha256:
            raise InputError(
                f"{name} was changed after its export, and still names the code space {self.fingerprint[:12]}: export "
                "the model again; lower precisions are made by dmsh-export trt"
            )


def _positive(props: Mapping[str, str], key: str) -> int:
    text = props[key]
    # More than nine digits are no number of ours, and int() refuses the very long ones.
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise InputError(f"{key} must be a positive whole number, got {text[:40]!r}")
    return int(text)
