"""The demo's encoders: the checkpoint as ONNX, its integer form as ONNX in both dialects and as a TensorRT plan."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from dmsh_export.compare.latency import Latency, measure
from dmsh_export.compare.parity import ParityReport
from dmsh_export.compare.runners import OnnxRunner, Runner, TorchRunner
from dmsh_export.engine.build import EngineOptions, engine_from_onnx
from dmsh_export.graph import Dialect
from dmsh_export.prove.certificate import Certificate
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.float import export_onnx
from dmsh_export.to_onnx.integer import IntegerExport, export_integer_onnx
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.integer import checkpoint as integer_checkpoint
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.console import progress
from dmsh_serving.errors import MissingError
from dmsh_serving.images.read import ImageSet

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "FILES",
    "FLOAT",
    "FOR_TENSORRT",
    "INTEGER",
    "MAX_BATCH",
    "UNFOLDED",
    "IntegerEncoders",
    "calibration_batches",
    "encoder_speeds",
    "export_float",
    "export_integer",
]

Export = TypeVar("Export")

FLOAT, UNFOLDED = "model.onnx", "model-unfolded.onnx"
INTEGER_CHECKPOINT, INTEGER, FOR_TENSORRT, PLAN = "integer", "integer.onnx", "integer-tensorrt.onnx", "integer.plan"
FILES: Final = {
    INTEGER_CHECKPOINT,
    *(name + end for name in (FLOAT, UNFOLDED, INTEGER, FOR_TENSORRT, PLAN) for end in ("", ".json")),
}
_DIALECTS: Final[tuple[tuple[str, Dialect], ...]] = ((INTEGER, "onnxruntime"), (FOR_TENSORRT, "tensorrt"))
MAX_BATCH: Final = 32
BATCHES_TIMED: Final = {1: 60, 32: 12}  # images a call: rounds
_CALIBRATION_BATCH = 64


@dataclass(frozen=True, eq=False)
class IntegerEncoders:
    """The integer network, the proof of its ONNX file, and what became of the plan (one line).

    ``parity`` holds both dialects against ``model``'s PyTorch arithmetic.
    """

    model: IntegerDMSH
    calibration_images: int
    certificate: Certificate
    parity: ParityReport
    plan: str


def export_float(model: DMSH, data: LabelledImages, out: Path) -> ParityReport:
    """Write the ONNX files of ``model``, folded and not, and return the parity of both on all of ``data``."""
    exports = [
        _watched(name, partial(export_onnx, model, out / name, data.images, folded=folded, max_batch=MAX_BATCH))
        for name, folded in ((FLOAT, True), (UNFOLDED, False))
    ]
    return _joined([export.parity for export in exports])


def export_integer(model: DMSH, data: LabelledImages, split: Split, out: Path) -> IntegerEncoders:
    """Quantise ``model`` on the training images, write checkpoint and both dialects, compile the plan.

    Raises:
        CheckError: a proof fails, or a bit or logit of a dialect is not PyTorch's.
    """
    quantised = quantise(model, calibration_batches(data, split))
    integer = quantised.model
    integer_checkpoint.save(
        integer, out / INTEGER_CHECKPOINT, parent=model.fingerprint, quantisation=quantised.record()
    )
    exports: list[IntegerExport] = [
        _watched(
            name,
            partial(export_integer_onnx, integer, out / name, data.images, dialect=dialect, max_batch=MAX_BATCH),
        )
        for name, dialect in _DIALECTS
    ]
    return IntegerEncoders(
        integer,
        quantised.calibration_images,
        exports[0].certificate,
        _joined([export.parity for export in exports]),
        _compile(out),
    )


def calibration_batches(data: LabelledImages, split: Split) -> Iterator[ImageSet]:
    """Yield the training images: what the network learnt from may set its scales, what judges it may not."""
    for start in range(0, len(split.train), _CALIBRATION_BATCH):
        rows = split.train[start : start + _CALIBRATION_BATCH]
        yield ImageSet(np.ascontiguousarray(data.images[rows]), [data.names[row] for row in rows], [])


def encoder_speeds(model: DMSH, out: Path, data: LabelledImages) -> list[Latency]:
    """Time the float network in PyTorch and ONNX Runtime and the integer one, in turns, on real images."""
    runners: list[Runner] = [TorchRunner(model), OnnxRunner(out / FLOAT), OnnxRunner(out / INTEGER)]
    speeds = []
    for batch, rounds in BATCHES_TIMED.items():
        speeds += measure(runners, lambda _: data.images, batch=batch, rounds=rounds)
    return speeds


def _compile(out: Path) -> str:
    """Build the plan from the tensorrt dialect; say with what, or why not."""
    try:
        build = engine_from_onnx(out / FOR_TENSORRT, out / PLAN, EngineOptions("int8"))
    except MissingError as error:
        return f"not built: {error}"
    return f"built with {build.choice.flavour} {build.version}, in the same code space"


def _joined(reports: list[ParityReport]) -> ParityReport:
    first = reports[0]
    return ParityReport(first.reference, first.fingerprint, tuple(t for report in reports for t in report.targets))


def _watched(name: str, export: Callable[..., Export]) -> Export:
    with progress() as bar:
        return export(on_progress=partial(_show, bar, bar.add_task(name, total=None)))


def _show(bar: "Progress", task: "TaskID", done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
