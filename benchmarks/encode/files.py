"""A network as the ONNX files that are timed: float, ONNX Runtime's own static INT8, and the integer network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dmsh_export.compare.runners import Images
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.float import export_onnx
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.contract import IMAGE
from dmsh_serving.images.read import ImageSet

__all__ = [
    "CALIBRATION_IMAGES",
    "FLOAT",
    "INTEGER",
    "INTEGER_OPENVINO",
    "INTEGER_TENSORRT",
    "OPENVINO_FLOAT",
    "OPENVINO_INT8",
    "STATIC_INT8",
    "EncoderFiles",
    "quantise_static",
    "write_encoder_files",
]

CALIBRATION_IMAGES: Final = 48
_PROVEN_IMAGES = 4  # when a file is made; the benchmark compares every bit of more of them itself
_AT_ONCE = 2

INTEGER: Final = "integer network"
INTEGER_TENSORRT: Final = "integer network, tensorrt dialect"
INTEGER_OPENVINO: Final = "integer network, OpenVINO"
FLOAT: Final = "ONNX Runtime fp32"
STATIC_INT8: Final = {"ONNX Runtime INT8, QDQ": "QDQ", "ONNX Runtime INT8, QOperator": "QOperator"}
# OpenVINO on files that are there already, {name: (file of, precision of what is not quantised)}.
OPENVINO_FLOAT: Final = {"OpenVINO fp32": (FLOAT, "f32"), "OpenVINO bf16": (FLOAT, "bf16")}
OPENVINO_INT8: Final = {"OpenVINO INT8 of that QDQ": ("ONNX Runtime INT8, QDQ", "f32")}


@dataclass(frozen=True, eq=False)
class EncoderFiles:
    """One network: in PyTorch, as integers, and as ONNX files, {name of the encoder: file}."""

    model: DMSH
    integer: IntegerDMSH
    files: dict[str, Path]


def write_encoder_files(model: DMSH, calibration: Images, folder: Path) -> EncoderFiles:
    """Write every ONNX file of ``model`` to ``folder``, quantised on ``calibration`` (N, H, W, 3) uint8."""
    proven = calibration[:_PROVEN_IMAGES]
    files = {
        name: folder / f"{number}.onnx"
        for number, name in enumerate((FLOAT, INTEGER, INTEGER_OPENVINO, INTEGER_TENSORRT))
    }
    export_onnx(model, files[FLOAT], proven, max_batch=1)
    integer = quantise(model, _batches(calibration)).model
    export_integer_onnx(integer, files[INTEGER], proven, dialect="onnxruntime", max_batch=1)
    export_integer_onnx(integer, files[INTEGER_OPENVINO], proven, dialect="openvino", max_batch=1)
    export_integer_onnx(integer, files[INTEGER_TENSORRT], proven, dialect="tensorrt", max_batch=1)
    for name, form in STATIC_INT8.items():
        files[name] = folder / f"{form}.onnx"
        quantise_static(files[FLOAT], files[name], form, calibration)
    return EncoderFiles(model, integer, files)


def _batches(images: Images) -> Iterator[ImageSet]:
    for start in range(0, len(images), _AT_ONCE):
        block = images[start : start + _AT_ONCE]
        yield ImageSet(block, [f"{start + row}" for row in range(len(block))], [])


def quantise_static(source: Path, target: Path, form: str, calibration: Images) -> None:
    """Quantise as ONNX Runtime's guide says for x86 with VNNI: uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is untyped
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {IMAGE: np.ascontiguousarray(image[None])}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat[form],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()
