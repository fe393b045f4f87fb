"""What the encoders of all runtimes share: the file and what it says of itself, its known answer, how it is called."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import check_images
from dmsh_serving.codes import Encoded, bytes_per_code
from dmsh_serving.contract import CODE, IMAGE, LOGITS, Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import CheckError, InputError

__all__ = ["OUTSIDE", "RUNTIMES", "Encoder", "Runtime", "proven_bytes"]

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: Final[Mapping[Runtime, str]] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}  # names for people
OUTSIDE: Final = "its weights lie outside the file (ONNX external data), which is refused: export one whole file"


class Encoder(ABC):
    """An exported model in one runtime: ``with encoder: encoder.infer(images)``.

    Attributes:
        path: the ONNX file.
        metadata: what the file says of itself.
        fingerprint, bits, image_size, framing: of ``metadata``.
    """

    runtime: Runtime

    def __init__(self, path: Path, props: Mapping[str, str]) -> None:
        self.path = path
        self.metadata = EncoderMetadata.from_props(props, str(path))
        self.fingerprint = self.metadata.fingerprint
        self.bits = self.metadata.bits
        self.image_size = self.metadata.image_size
        self.framing = self.metadata.framing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free memory and threads."""

    def infer(self, images: npt.NDArray[np.uint8]) -> Encoded:
        """Encode images (N, H, W, 3) uint8, RGB, H = W = ``image_size``; N may be 0.

        Raises:
            InputError: another shape or dtype.
        """
        check_images(images, self.image_size)
        if not len(images):
            return Encoded(np.zeros((0, bytes_per_code(self.bits)), np.uint8), np.zeros((0, self.bits), np.float32))
        return self._computed(np.ascontiguousarray(images))

    @abstractmethod
    def _computed(self, images: npt.NDArray[np.uint8]) -> Encoded:
        """Encode at least one image."""

    def _check_signature(self, found: Mapping[str, str]) -> None:
        """Refuse tensors (name -> type) that are not an encoder's."""
        expected = {IMAGE: "uint8", CODE: "uint8", LOGITS: "float32"}
        if found != expected:
            raise InputError(
                f"{self.path}: expected the tensors {expected}, found {dict(found)}: export the model again"
            )

    def _check_known_answer(self) -> None:
        text = self.metadata.known_answer
        if text is None:
            raise InputError(f"{self.path} has no {Metadata.KNOWN_ANSWER} in its metadata: export the model again")
        try:
            known_answer.check(lambda images: self.infer(images).checked(), text)
        except (CheckError, InputError) as error:
            raise type(error)(f"{self.path}: {error} (in {RUNTIMES[self.runtime]})") from error


def proven_bytes(path: Path) -> bytes:
    """Return the file's bytes; refuse another file than the one that its manifest, if there is one, was written for."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: name an ONNX model made by dmsh-export onnx")
    data, manifest = path.read_bytes(), path.with_name(path.name + ".json")
    if manifest.is_file():
        try:
            expected = json.loads(manifest.read_bytes())["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{manifest} is not a manifest of dmsh-export: export the model again") from error
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise InputError(
                f"{path} is not the model that {manifest.name} describes: its SHA-256 is {found}, not {expected}; "
                "export the model again"
            )
    return data
