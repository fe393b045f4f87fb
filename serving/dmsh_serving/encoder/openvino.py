"""Images to codes with OpenVINO on a CPU, from the same ONNX file in the openvino dialect, or from a float one.

OpenVINO is always told to keep FP32: the head of an integer network holds integers of up to 24 bits, which bf16, its
choice on CPUs that have it, would lose.
"""

import functools
import io
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Encoded
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.cpu import available_cpus, has_vnni
from dmsh_serving.encoder import first_try
from dmsh_serving.encoder.base import OUTSIDE, Encoder, Runtime, proven_bytes
from dmsh_serving.encoder.props import has_external_data, props_of_onnx
from dmsh_serving.errors import InputError, MissingError

__all__ = ["OpenVinoEncoder", "compiled", "why_not_here"]

_DIALECT: Final = "openvino"
_REFUSED: Final = {
    "onnxruntime": "OpenVINO crashes while it reads that",
    "tensorrt": "OpenVINO leaves out a rounding in it",
}
_TYPES: Final = {"u8": "uint8", "f32": "float32"}


class OpenVinoEncoder(Encoder):
    """One compiled model: ``with OpenVinoEncoder(path) as encoder: encoder.infer(images)``.

    Args:
        path: an ONNX file, of an integer network in the openvino dialect.
        threads: number of threads of one run (None: as many as cores).
        streams: parts that a batch is split into, computed side by side, each on its share of the threads.
        check_known_answer: False is for those who compare every bit themselves.
        tried_first: load the file in another process first, so that a crash there is an error here.

    Raises:
        InputError: not an ONNX file, not made by dmsh-export, another dialect, not the file that its manifest
            describes, or its weights lie outside the file.
        MissingError: OpenVINO is not installed, or an integer network on a CPU without VNNI.
        CheckError: OpenVINO crashes, or the known answer comes out different on this machine.
    """

    runtime: Runtime = "openvino"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        streams: int = 1,
        check_known_answer: bool = True,
        tried_first: bool = True,
    ) -> None:
        data = proven_bytes(path)
        super().__init__(path, props_of_onnx(data, str(path)))
        if has_external_data(data, str(path)):  # OpenVINO would read it from the current folder
            raise InputError(f"{path}: {OUTSIDE}")
        if check_known_answer:
            self.metadata.check_graph(data, str(path))
        self._check_dialect(data)
        if reason := why_not_here(integer=self.metadata.dialect is not None):
            raise MissingError(f"{path}: {reason}")
        if tried_first:
            first_try.survive(path, threads, streams)
        self._model: Any = compiled(data, str(path), threads=threads, streams=streams)
        self._check_signature(
            {
                tensor.get_any_name(): _TYPES.get(kind := tensor.get_element_type().get_type_name(), kind)
                for tensor in (*self._model.inputs, *self._model.outputs)
            }
        )
        self._requests = [self._model.create_infer_request() for _ in range(streams)]
        self._turn = threading.Lock()
        if check_known_answer:
            self._check_known_answer()

    def close(self) -> None:
        """Free the compiled model's memory and threads."""
        self._requests = []
        self._model = None

    def _computed(self, images: npt.NDArray[np.uint8]) -> Encoded:
        parts = np.array_split(images, min(len(images), len(self._requests)))
        running = self._requests[: len(parts)]
        with self._turn:  # the tensors are the runtime's own, and the next call overwrites them
            for request, part in zip(running, parts, strict=True):
                request.start_async({IMAGE: part}, share_inputs=True)
            for request in running:
                request.wait()
            code, logits = (
                np.concatenate([request.get_tensor(name).data for request in running]) for name in (CODE, LOGITS)
            )
        return Encoded(code, logits)

    def _check_dialect(self, data: bytes) -> None:
        dialect = self.metadata.dialect
        if dialect is None and b"QuantizeLinear" in data:
            raise InputError(f"{self.path} holds an integer network and names no dialect: export it again")
        if dialect not in (None, _DIALECT):
            why = _REFUSED.get(dialect or "", "it is unknown here")
            raise InputError(
                f"{self.path} is in the {dialect} dialect, and {why}: export it for OpenVINO with dmsh-export onnx "
                "CHECKPOINT --dialect openvino"
            )


def why_not_here(*, integer: bool) -> str | None:
    """Return one line that says why OpenVINO cannot serve here; None if it can. ``integer``: an integer network."""
    if integer and not has_vnni():
        return (
            "this CPU has no VNNI, and OpenVINO's integer kernels saturate silently on such a CPU: serve the "
            "onnxruntime dialect with ONNX Runtime"
        )
    try:
        import openvino  # noqa: F401
    except ImportError:
        return "openvino is not installed: pip install 'dmsh-toolkit[openvino]'"
    return None


def compiled(data: bytes, name: str, *, threads: int | None, streams: int = 1, precision: str = "f32") -> Any:
    """Return OpenVINO's compiled model of the ONNX file with the bytes ``data``; an error calls it ``name``.

    Raises:
        InputError: OpenVINO cannot read it.
    """
    import openvino

    reader = _frontends().load_by_framework("onnx")  # Core.read_model would guess the format from the bytes
    try:
        model = reader.convert(reader.load(io.BytesIO(data)))
    except Exception as error:  # its failures have no common base
        raise InputError(f"{name}: {_reason(str(error))}") from error
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or available_cpus(),
            "NUM_STREAMS": streams,
            # Pinned threads of two processes, such as two instances in Triton, would share the first cores.
            "ENABLE_CPU_PINNING": False,
        },
    )


@functools.cache
def _frontends() -> Any:
    """Return what loads OpenVINO's readers; with it go their libraries, which a model may still need."""
    from openvino.frontend import FrontEndManager

    return FrontEndManager()


def _reason(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"OpenVINO cannot load it, is it an ONNX model? ({lines[-1][:200] if lines else 'no reason given'})"
