"""The contenders: one network by PyTorch, ONNX Runtime and OpenVINO, each in several forms, images -> logits."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.encode.files import (
    FLOAT,
    INTEGER,
    INTEGER_OPENVINO,
    INTEGER_TENSORRT,
    OPENVINO_FLOAT,
    OPENVINO_INT8,
    EncoderFiles,
)
from dmsh_export.compare.machine import instructions
from dmsh_export.compare.runners import Images
from dmsh_model.network import DMSH
from dmsh_serving.contract import IMAGE, LOGITS
from dmsh_serving.cpu import has_vnni
from dmsh_serving.encoder.openvino import compiled as compiled_by_openvino
from dmsh_serving.encoder.openvino import why_not_here

__all__ = [
    "CHANNELS_LAST",
    "COMPILED",
    "EAGER",
    "Compiled",
    "Contender",
    "Logits",
    "Reference",
    "contenders",
    "open_session",
]

Logits = npt.NDArray[np.float32]
Reference = Literal["float", "integer"]

EAGER: Final = "PyTorch eager"
CHANNELS_LAST: Final = "PyTorch channels_last"
COMPILED: Final = "PyTorch torch.compile"


@dataclass(frozen=True)
class Contender:
    """One encoder, ready to run on a number of threads that was set when it was made.

    Attributes:
        name: for the table.
        reference: the network in PyTorch whose bits it must give, float or integer.
        arithmetic: of its convolutions; decides the peak it is compared with.
        run: images (N, H, W, 3) uint8 -> logits (N, K).
        isa: the instructions of its convolutions: OpenVINO says so itself, the others take the best that the CPU has.
    """

    name: str
    reference: Reference
    arithmetic: Literal["fp32", "int8"]
    run: Callable[[Images], Logits]
    isa: str


class Compiled:
    """torch.compile, once for all settings; if it fails, ``failure`` is one line with the reason."""

    def __init__(self, model: DMSH) -> None:
        torch.compiler.reset()  # networks before count towards the recompilations after which it silently runs eager
        self._module: Any = torch.compile(copy.deepcopy(model))
        self.failure: str | None = None

    def tried(self, images: Images, threads: int) -> bool:
        """Compile for these images (N, H, W, 3) uint8 and threads; return whether that worked."""
        torch.set_num_threads(threads)
        try:
            self.run(images)
        except Exception as error:  # whatever a missing compiler, or a fault of torch's, makes it raise
            self.failure = next((line for line in reversed(str(error).strip().splitlines()) if line), repr(error))
        return self.failure is None

    def run(self, images: Images) -> Logits:
        """Images (N, H, W, 3) uint8 -> logits (N, K)."""
        with torch.inference_mode():
            return np.asarray(self._module(torch.from_numpy(images)).numpy())


def contenders(files: EncoderFiles, compiled: Compiled | None, threads: int) -> Iterator[Contender]:
    """Set PyTorch's threads and yield all contenders; that of torch.compile only with ``compiled``."""
    torch.set_num_threads(threads)
    fp32, int8 = instructions("fp32"), instructions("int8")
    yield Contender(EAGER, "float", "fp32", _torch(files.model), fp32)
    by_channel = copy.deepcopy(files.model).to(memory_format=torch.channels_last)
    yield Contender(CHANNELS_LAST, "float", "fp32", _torch(by_channel), fp32)
    if compiled is not None:
        yield Contender(COMPILED, "float", "fp32", compiled.run, fp32)
    for name, path in files.files.items():
        if name == INTEGER_OPENVINO:
            continue
        ours = name in (INTEGER, INTEGER_TENSORRT)
        # ONNX Runtime fuses the tensorrt dialect's Q/DQ no further than to FP32 convolutions.
        is_float = name in (FLOAT, INTEGER_TENSORRT)
        run = _onnx(path, threads, exact=ours)
        yield Contender(
            name, "integer" if ours else "float", "fp32" if is_float else "int8", run, fp32 if is_float else int8
        )
    if why_not_here(integer=True) is not None:
        return
    for name, (source, precision) in (OPENVINO_FLOAT | OPENVINO_INT8).items():
        run, isa = _openvino(files.files[source], threads, precision)
        yield Contender(name, "float", "fp32" if name in OPENVINO_FLOAT else "int8", run, isa)
    run, isa = _openvino(files.files[INTEGER_OPENVINO], threads, "f32")
    yield Contender(INTEGER_OPENVINO, "integer", "int8", run, isa)


def _torch(model: DMSH) -> Callable[[Images], Logits]:
    return lambda images: model.logits(images, batch_size=len(images))


def _onnx(path: Path, threads: int, *, exact: bool) -> Callable[[Images], Logits]:
    session = open_session(path, threads, exact=exact)

    def run(images: Images) -> Logits:
        (logits,) = session.run([LOGITS], {IMAGE: images})
        return np.asarray(logits)

    return run


def _openvino(path: Path, threads: int, precision: str) -> tuple[Callable[[Images], Logits], str]:
    """Return what runs a file in OpenVINO, and the instructions of most of its convolutions."""
    model = compiled_by_openvino(path.read_bytes(), path.name, threads=threads, precision=precision)
    kernels = Counter(
        str(node.get_rt_info()["primitiveType"].value)
        for node in model.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].value in ("Convolution", "GroupConvolution")
    )

    def run(images: Images) -> Logits:
        return np.array(model({IMAGE: images})[LOGITS])

    return run, kernels.most_common(1)[0][0] if kernels else ""


def open_session(model: Path | bytes, threads: int, *, exact: bool) -> Any:
    """Return an ONNX Runtime session whose threads rest between runs; ``exact`` as the toolkit's encoder opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that spin after a run would take the cores from the contender that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if exact and not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
