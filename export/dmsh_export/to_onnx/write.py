"""Write an encoder, float or integer, as an ONNX file that says what it is and is proven against PyTorch."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dmsh_export.compare.parity import ParityReport, compare
from dmsh_export.compare.runners import OnnxRunner, Runner, TorchRunner
from dmsh_export.manifest import publish, write_manifest
from dmsh_export.seal import sealed
from dmsh_export.to_onnx.opsets import MIN_OPSET
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving import __version__
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, InputError

__all__ = ["check_request", "describe", "write_proven"]

PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "numpy")


def check_request(out: Path, opset: int, images: npt.NDArray[np.uint8]) -> None:
    """Refuse a request that no export can fulfil.

    Raises:
        InputError: no images, an opset out of range, or ``out`` is not in a folder.
    """
    if not MIN_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise InputError(f"opset = {opset} must be {MIN_OPSET} to {onnx.defs.onnx_opset_version()}")
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise InputError(f"{out}: name a file in a folder that exists")
    if not len(images):
        raise InputError("no images to prove the export on: give at least one")


def describe(
    proto: onnx.ModelProto,
    model: DMSH | IntegerDMSH,
    answer: str,
    options: dict[str, Any],
    more: dict[str, str] | None = None,
) -> None:
    """Write the metadata that a reader needs: code space, sizes, config with ``options``, the known ``answer``."""
    proto.producer_name = "dmsh-toolkit"
    proto.producer_version = __version__
    onnx.helper.set_model_props(
        proto,
        {
            Metadata.FINGERPRINT: model.fingerprint,
            Metadata.BITS: str(model.config.bits),
            Metadata.IMAGE_SIZE: str(model.config.image_size),
            Metadata.FRAMING: str(model.config.framing),
            Metadata.CONFIG: json.dumps({**model.config.to_dict(), **options}, sort_keys=True),
            Metadata.TOOL_VERSION: __version__,
            Metadata.KNOWN_ANSWER: answer,
            **(more or {}),
        },
    )


def write_proven(
    proto: onnx.ModelProto,
    model: DMSH | IntegerDMSH,
    out: Path,
    images: npt.NDArray[np.uint8],
    *,
    options: dict[str, Any],
    results: dict[str, Any],
    max_batch: int,
    on_progress: Callable[[int, int], None] | None = None,
    runners_of: Callable[[Path], Sequence[Runner]] = lambda path: [OnnxRunner(path)],
) -> ParityReport:
    """Write ``proto``, an encoder made from ``model``, as ``out`` with its manifest, if no bit differs on ``images``.

    ``results`` go into the manifest beside the parity. ``runners_of`` gives what runs the file.

    Raises:
        CheckError: one bit, or of an integer network one logit, differs from PyTorch's.
    """
    onnx.checker.check_model(proto, full_check=True)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    with publish(out) as (candidate,):
        candidate.write_bytes(sealed(proto))
        report = compare(
            TorchRunner(model), runners_of(candidate), images, max_batch=max_batch, on_progress=on_progress
        )
        if not report.passed:
            raise CheckError(f"{out} is not written: {report.summary()}")
        write_manifest(
            candidate,
            kind="onnx",
            fingerprint=model.fingerprint,
            made_from={"checkpoint": model.fingerprint},
            options=options,
            packages=PACKAGES,
            results={"parity": report.to_dict(), **results},
        )
    return report
