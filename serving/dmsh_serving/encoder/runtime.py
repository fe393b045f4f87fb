"""Images to codes with ONNX Runtime, from one ONNX file that says what it is.

The file's ``metadata_props`` name its code space (fingerprint), bits, image size and known answer; see
:class:`dmsh_serving.contract.Metadata`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import check_images
from dmsh_serving.codes import Encoded, bytes_per_code
from dmsh_serving.contract import CODE, IMAGE, LOGITS, Metadata
from dmsh_serving.cpu import has_vnni
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import CheckError, InputError, MissingError

__all__ = ["OnnxEncoder"]

CPU_PROVIDERS = ("CPUExecutionProvider",)
# What ONNX Runtime calls weights that lie outside the file, in its several refusals.
_OUTSIDE = re.compile(r"\bexternal (data|tensors|initializer)", re.IGNORECASE)


class OnnxEncoder:
    """One ONNX Runtime session over an exported model: ``with OnnxEncoder(path) as encoder: encoder.infer(images)``.

    ``threads`` is the number of threads of one run (None: as many as cores); ``providers`` are ONNX Runtime's
    names, each of which must really be active; ``optimise=False`` runs the graph as it is written;
    ``check_known_answer=False`` is for those who compare every bit themselves.

    Raises:
        InputError: not an ONNX file, not made by dmsh-export, not the file that its manifest describes, or its weights
            lie outside the file.
        MissingError: ONNX Runtime or a requested provider is not there.
        CheckError: the known answer comes out different on this machine.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        optimise: bool = True,
        check_known_answer: bool = True,
    ) -> None:
        self.path = path
        self._session = _open_session(path, threads, tuple(providers or CPU_PROVIDERS), optimise)
        self.metadata = EncoderMetadata.from_props(self._session.get_modelmeta().custom_metadata_map, str(path))
        self.fingerprint = self.metadata.fingerprint
        self.bits = self.metadata.bits
        self.image_size = self.metadata.image_size
        self.framing = self.metadata.framing
        self._check_signature()
        if check_known_answer:
            self._check_known_answer(self.metadata.known_answer)

    def __enter__(self) -> "OnnxEncoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the session's memory and threads."""
        self._session = None

    def infer(self, images: npt.NDArray[np.uint8]) -> Encoded:
        """Encode images (N, H, W, 3) uint8, RGB, H = W = ``image_size``; N may be 0.

        Raises:
            InputError: another shape or dtype.
        """
        check_images(images, self.image_size)
        if not len(images):
            return Encoded(np.zeros((0, bytes_per_code(self.bits)), np.uint8), np.zeros((0, self.bits), np.float32))
        code, logits = self._session.run([CODE, LOGITS], {IMAGE: np.ascontiguousarray(images)})
        return Encoded(code, logits)

    def _check_signature(self) -> None:
        found = {tensor.name: tensor.type for tensor in self._session.get_inputs() + self._session.get_outputs()}
        expected = {IMAGE: "tensor(uint8)", CODE: "tensor(uint8)", LOGITS: "tensor(float)"}
        if found != expected:
            raise InputError(f"{self.path}: expected the tensors {expected}, found {found}: export the model again")

    def _check_known_answer(self, text: str | None) -> None:
        if text is None:
            raise InputError(f"{self.path} has no {Metadata.KNOWN_ANSWER} in its metadata: export the model again")
        try:
            known_answer.check(lambda images: self.infer(images).checked().code, text)
        except (CheckError, InputError) as error:
            raise type(error)(f"{self.path}: {error}") from error


def _open_session(path: Path, threads: int | None, providers: tuple[str, ...], optimise: bool) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is not a file: name an ONNX model made by dmsh-export onnx")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError("onnxruntime is not installed: pip install onnxruntime-gpu") from error
    absent = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if absent:
        raise MissingError(
            f"ONNX Runtime here has no {', '.join(absent)}; it has {', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised, and becomes one line below
    options.intra_op_num_threads = threads or 0
    # Exact u8 x s8 products on CPUs without VNNI, whose fast kernels saturate in int16. VNNI is exact, and three times
    # as fast as what ONNX Runtime takes with this option, on every x86 CPU.
    options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni() else "1")
    # With the model given as bytes, external data can only come from this folder, which is none.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = _proven_bytes(path)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=list(providers), enable_fallback=False)
    except Exception as error:  # ONNX Runtime has a class for every status, without a common base
        raise InputError(f"{path}: {_reason(str(error))}") from error
    inactive = [name for name in providers if name not in session.get_providers()]
    if inactive:
        raise MissingError(f"ONNX Runtime could not start {', '.join(inactive)}: is its GPU driver or library there?")
    return session


def _proven_bytes(path: Path) -> bytes:
    """Return the file's bytes; refuse another file than the one that its manifest, if there is one, was written for."""
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


def _reason(message: str) -> str:
    if _OUTSIDE.search(message):
        return "its weights lie outside the file (ONNX external data), which is refused: export one whole file"
    return f"ONNX Runtime cannot load it, is it an ONNX model? ({message.splitlines()[0][:200]})"
