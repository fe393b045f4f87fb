"""The contenders: one network by PyTorch in three forms and by ONNX Runtime in four, each images -> logits."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.encode.files import FLOAT, INTEGER, INTEGER_TENSORRT, EncoderFiles
from dmsh_export.compare.runners import Images
from dmsh_model.network import DMSH
from dmsh_serving.contract import IMAGE, LOGITS
from dmsh_serving.cpu import has_vnni

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
    """

    name: str
    reference: Reference
    arithmetic: Literal["fp32", "int8"]
    run: Callable[[Images], Logits]


class Compiled:
    """torch.compile, once for all settings; if it fails, ``failure`` is one line with the reason."""

    def __init__(self, model: DMSH) -> None:
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
    yield Contender(EAGER, "float", "fp32", _torch(files.model))
    by_channel = copy.deepcopy(files.model).to(memory_format=torch.channels_last)
    yield Contender(CHANNELS_LAST, "float", "fp32", _torch(by_channel))
    if compiled is not None:
        yield Contender(COMPILED, "float", "fp32", compiled.run)
    for name, path in files.files.items():
        ours = name in (INTEGER, INTEGER_TENSORRT)
        yield Contender(
            name,
            "integer" if ours else "float",
            # ONNX Runtime fuses the tensorrt dialect's Q/DQ no further than to FP32 convolutions.
            "fp32" if name in (FLOAT, INTEGER_TENSORRT) else "int8",
            _onnx(path, threads, exact=ours),
        )


def _torch(model: DMSH) -> Callable[[Images], Logits]:
    return lambda images: model.logits(images, batch_size=len(images))


def _onnx(path: Path, threads: int, *, exact: bool) -> Callable[[Images], Logits]:
    session = open_session(path, threads, exact=exact)

    def run(images: Images) -> Logits:
        (logits,) = session.run([LOGITS], {IMAGE: images})
        return np.asarray(logits)

    return run


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
