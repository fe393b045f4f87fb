"""One interface, ``with runner: runner.infer(images)``, for everything that turns images into codes."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from dmsh_export.engine.rounding import runnable
from dmsh_export.engine.runner import TensorRTRunner
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.client import SearchClient
from dmsh_serving.codes import Encoded, pack
from dmsh_serving.encoder.base import RUNTIMES, Encoder
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.encoder.open import runtime_of
from dmsh_serving.encoder.openvino import OpenVinoEncoder
from dmsh_serving.encoder.props import props_of_onnx
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = ["Images", "OnnxRunner", "OpenVinoRunner", "Runner", "TorchRunner", "TritonRunner", "runner_of"]

Images = npt.NDArray[np.uint8]


class Runner(Protocol):
    """An encoder under test: images (N, H, W, 3) uint8 -> code (N, B) uint8 and logits (N, K) float32."""

    name: str
    bits: int
    image_size: int
    fingerprint: str
    parent_fingerprint: str | None  # of a low-precision encoder: the code space it approximates
    framing: Framing | None  # how pictures become its images; None if it does not say
    is_exact: bool  # whether it is an integer network, whose logits are the same on every machine

    def __enter__(self) -> Self:
        """Start it: open the session or the connection."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and free what it holds."""
        ...

    def infer(self, images: Images) -> Encoded:
        """Encode one batch."""
        ...


class _Runner:
    """Nothing to start, nothing to stop."""

    parent_fingerprint: str | None = None
    framing: Framing | None = None
    is_exact = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class TorchRunner(_Runner):
    """PyTorch, the reference: eager, or the integer network's exact arithmetic."""

    name = "PyTorch"

    def __init__(self, model: DMSH | IntegerDMSH) -> None:
        self.model = model
        self.bits = model.config.bits
        self.image_size = model.config.image_size
        self.fingerprint = model.fingerprint
        self.framing = model.config.framing
        self.is_exact = isinstance(model, IntegerDMSH)

    def infer(self, images: Images) -> Encoded:
        """Encode one batch in one call of the network."""
        logits = self.model.logits(images, batch_size=max(1, len(images)))
        return Encoded(pack(logits), logits)


class _FileRunner(_Runner, ABC):
    """An ONNX file in one runtime, opened in ``__enter__``.

    Parity counts every wrong bit itself, so the encoders are opened without their known answer, which would stop at the
    first few images.
    """

    _encoder: Encoder

    @abstractmethod
    def _open(self) -> Encoder:
        """Open the runtime."""

    def __enter__(self) -> Self:
        self._encoder = self._open()
        self.bits = self._encoder.bits
        self.image_size = self._encoder.image_size
        self.fingerprint = self._encoder.fingerprint
        self.parent_fingerprint = self._encoder.metadata.parent_fingerprint
        self.framing = self._encoder.framing
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder.close()

    def infer(self, images: Images) -> Encoded:
        """Encode one batch in one call of the runtime; OpenVINO splits it among its streams."""
        return self._encoder.infer(images)


class OnnxRunner(_FileRunner):
    """An ONNX file in ONNX Runtime on the CPU; :class:`OnnxEncoder` says what it refuses.

    A plan's graph in low precision, which no runtime serves, runs as :mod:`dmsh_export.engine.rounding` writes it, for
    its rounding to be seen. Any other runs as it serves.
    """

    def __init__(self, path: Path, *, threads: int | None = None, optimise: bool = True) -> None:
        self.name = path.name
        self._path = path
        self._threads = threads
        self._optimise = optimise

    def _open(self) -> Encoder:
        if not self._is_of_a_plan():
            return OnnxEncoder(self._path, threads=self._threads, optimise=self._optimise, check_known_answer=False)
        with runnable(self._path) as runs:
            optimise = self._optimise and runs.optimise
            return OnnxEncoder(runs.path, threads=self._threads, optimise=optimise, check_known_answer=False)

    def _is_of_a_plan(self) -> bool:
        if not self._path.is_file():
            return False  # the encoder says so
        name = str(self._path)
        said = EncoderMetadata.from_props(props_of_onnx(self._path.read_bytes(), name), name)
        return said.parent_fingerprint is not None


class OpenVinoRunner(_FileRunner):
    """An ONNX file in OpenVINO on the CPU; :class:`OpenVinoEncoder` says what it refuses."""

    def __init__(self, path: Path, *, threads: int | None = None, streams: int = 1) -> None:
        self.name = f"{path.name} in OpenVINO"
        self._path = path
        self._threads, self._streams = threads, streams

    def _open(self) -> Encoder:
        return OpenVinoEncoder(self._path, threads=self._threads, streams=self._streams, check_known_answer=False)


class TritonRunner(_Runner):
    """An encoder model of a running Triton, ``triton://host:port/model``, over gRPC."""

    def __init__(self, target: str) -> None:
        self.name = target
        url = urlsplit(target)
        self._server = url.netloc
        self._model = url.path.strip("/")
        try:
            complete = bool(url.hostname and url.port and self._model)
        except ValueError:  # urlsplit reads the port when it is asked for
            complete = False
        if not complete:
            raise InputError(f"{target}: write a Triton target as triton://host:port/model")

    def __enter__(self) -> Self:
        self._client = SearchClient(self._server)
        space = self._client.code_space(self._model)
        self.bits, self.image_size = space.bits, space.image_size
        self.fingerprint, self.parent_fingerprint = space.fingerprint, space.parent_fingerprint
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def infer(self, images: Images) -> Encoded:
        """Encode in requests of at most the model's ``max_batch_size``."""
        return self._client.encode(images, model=self._model)


def runner_of(target: str) -> Runner:
    """Return the runner of a TARGET: ``FILE.onnx``, ``FILE.plan`` or ``triton://host:port/model``.

    ``onnxruntime:FILE.onnx`` and ``openvino:FILE.onnx`` name the runtime; otherwise the file's dialect does.

    Raises:
        InputError: none of these.
    """
    if target.startswith("triton://"):
        return TritonRunner(target)
    runtime, named, file = target.partition(":")
    if named and runtime in RUNTIMES and Path(file).suffix == ".onnx":
        return OpenVinoRunner(Path(file)) if runtime == "openvino" else OnnxRunner(Path(file))
    if Path(target).suffix == ".onnx":
        path = Path(target)
        is_openvino = path.is_file() and runtime_of(path) == "openvino"
        return OpenVinoRunner(path) if is_openvino else OnnxRunner(path)
    if Path(target).suffix == ".plan":
        return TensorRTRunner(Path(target))
    raise InputError(
        f"{target}: a target is FILE.onnx (openvino:FILE.onnx for that runtime), FILE.plan or triton://host:port/model"
    )
