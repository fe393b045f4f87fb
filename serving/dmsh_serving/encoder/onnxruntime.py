"""Images to codes with ONNX Runtime, from one ONNX file that says what it is.

The file's ``metadata_props`` name its code space (fingerprint), bits, image size and known answer; see
:class:`dmsh_serving.contract.Metadata`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Encoded
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.cpu import has_vnni
from dmsh_serving.encoder.base import OUTSIDE, Encoder, Runtime, proven_bytes
from dmsh_serving.errors import InputError, MissingError

__all__ = ["OnnxEncoder"]

CPU_PROVIDERS = ("CPUExecutionProvider",)
# What ONNX Runtime calls weights that lie outside the file, in its several refusals.
_OUTSIDE = re.compile(r"\bexternal (data|tensors|initializer)", re.IGNORECASE)
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxEncoder(Encoder):
    """One ONNX Runtime session over an exported model: ``with OnnxEncoder(path) as encoder: encoder.infer(images)``.

    ``threads`` is the number of threads of one run (None: as many as cores); ``providers`` are ONNX Runtime's
    names, each of which must really be active; ``optimise=False`` runs the graph as it is written;
    ``check_known_answer=False`` is for those who compare every bit themselves.

    Raises:
        InputError: not an ONNX file, not made by dmsh-export, not the file that its manifest describes, changed by
            another tool, or its weights lie outside the file.
        MissingError: ONNX Runtime or a requested provider is not there.
        CheckError: the known answer comes out different on this machine.
    """

    runtime: Runtime = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        optimise: bool = True,
        check_known_answer: bool = True,
    ) -> None:
        data = proven_bytes(path)
        self._session = _open_session(path, data, threads, tuple(providers or CPU_PROVIDERS), optimise)
        super().__init__(path, self._session.get_modelmeta().custom_metadata_map)
        tensors = self._session.get_inputs() + self._session.get_outputs()
        self._check_signature({tensor.name: _TYPES.get(tensor.type, tensor.type) for tensor in tensors})
        if check_known_answer:
            self.metadata.check_graph(data, str(path))
            self._check_known_answer()

    def close(self) -> None:
        """Free the session's memory and threads."""
        self._session = None

    def _computed(self, images: npt.NDArray[np.uint8]) -> Encoded:
        code, logits = self._session.run([CODE, LOGITS], {IMAGE: images})
        return Encoded(code, logits)


def _open_session(path: Path, data: bytes, threads: int | None, providers: tuple[str, ...], optimise: bool) -> Any:
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
    # Else a mark in the bytes would have another network read from them, in ONNX Runtime's own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(data, options, providers=list(providers), enable_fallback=False)
    except Exception as error:  # ONNX Runtime has a class for every status, without a common base
        raise InputError(f"{path}: {_reason(str(error))}") from error
    inactive = [name for name in providers if name not in session.get_providers()]
    if inactive:
        raise MissingError(f"ONNX Runtime could not start {', '.join(inactive)}: is its GPU driver or library there?")
    return session


def _reason(message: str) -> str:
    if _OUTSIDE.search(message):
        return OUTSIDE
    return f"ONNX Runtime cannot load it, is it an ONNX model? ({message.splitlines()[0][:200]})"
