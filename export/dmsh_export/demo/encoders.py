"""The demo's encoders beside the one that is deployed: the checkpoint in FP32, its integer form for TensorRT."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_export.compare.latency import Latency, measure
from dmsh_export.compare.runners import OnnxRunner, Runner, TorchRunner, runner_of
from dmsh_export.engine.build import EngineOptions, engine_from_onnx
from dmsh_export.to_onnx.float import export_onnx
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.errors import MissingError

__all__ = [
    "FILES",
    "FLOAT",
    "FLOATS",
    "FOR_TENSORRT",
    "MAX_BATCH",
    "UNFOLDED",
    "Images",
    "encoder_speeds",
    "export_float",
    "export_for_tensorrt",
]

Images = npt.NDArray[np.uint8]

FLOAT, UNFOLDED = "float.onnx", "float-as-trained.onnx"
FLOATS: Final = (FLOAT, UNFOLDED)
FOR_TENSORRT, PLAN = "integer-tensorrt.onnx", "integer.plan"
FILES: Final = {name + end for name in (FLOAT, UNFOLDED, FOR_TENSORRT, PLAN) for end in ("", ".json")}
MAX_BATCH: Final = 32
BATCHES_TIMED: Final = {1: 40, 32: 6}  # images a call: rounds


def export_float(model: DMSH, images: Images, out: Path) -> None:
    """Write the ONNX files of ``model``, folded and not, each held against PyTorch on ``images``.

    Raises:
        CheckError: a bit is not PyTorch's.
    """
    for name in FLOATS:
        export_onnx(model, out / name, images, folded=name == FLOAT, max_batch=MAX_BATCH)


def export_for_tensorrt(model: IntegerDMSH, images: Images, out: Path) -> str:
    """Write the integer network in TensorRT's dialect, held against PyTorch on ``images``, and compile it.

    Returns:
        one line that says with what the plan was built, or why it was not.

    Raises:
        CheckError: the proof fails, or a bit or logit is not PyTorch's.
    """
    export_integer_onnx(model, out / FOR_TENSORRT, images, dialect="tensorrt", max_batch=MAX_BATCH)
    try:
        build = engine_from_onnx(out / FOR_TENSORRT, out / PLAN, EngineOptions("int8"))
    except MissingError as error:
        return f"not built: {error}"
    return f"built with {build.choice.flavour} {build.version}, in the same code space"


def encoder_speeds(model: DMSH, out: Path, integer: list[Path], images: Images) -> list[Latency]:
    """Time the float network in PyTorch and ONNX Runtime, and the ONNX files ``integer``, in turns, on real images."""
    runners: list[Runner] = [TorchRunner(model), OnnxRunner(out / FLOAT), *(runner_of(str(file)) for file in integer)]
    speeds = []
    for batch, rounds in BATCHES_TIMED.items():
        speeds += measure(runners, lambda _: images, batch=batch, rounds=rounds)
    return speeds
