"""Which runtime serves a deployment, and the file that it serves."""

from pathlib import Path
from typing import Final

import dmsh_model
from dmsh_export.compare.fastest import Choice, fastest
from dmsh_export.manifest import manifest_path
from dmsh_export.quantise.batches import spread_images
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_serving.encoder.base import Runtime
from dmsh_serving.encoder.openvino import why_not_here
from dmsh_serving.errors import DmshError, MissingError
from dmsh_serving.triton.settings import EncoderSettings

__all__ = ["COMPARED_IMAGES", "MODEL", "OPENVINO_MODEL", "choose_runtime", "served_file"]

MODEL: Final = "model.onnx"
OPENVINO_MODEL: Final = "openvino.onnx"
COMPARED_IMAGES: Final = 500  # on which an export is held against PyTorch


def choose_runtime(source: Path, images: Path, out: Path, asked: Runtime | None) -> Choice:
    """Write the model for OpenVINO too, if that can serve it here, and time what can; only ``asked`` if it is given.

    A file for OpenVINO that another deployment left in ``out`` is deleted.

    Raises:
        DmshError: the runtime that was asked for cannot serve here.
    """
    for path in (out / OPENVINO_MODEL, manifest_path(out / OPENVINO_MODEL)):
        path.unlink(missing_ok=True)  # of another model, which was deployed here before
    files: dict[Runtime, Path] = {"onnxruntime": out / MODEL}
    refused: dict[Runtime, str] = {}
    model = dmsh_model.load(source)
    if isinstance(model, IntegerDMSH) and asked != "onnxruntime":
        try:
            if reason := why_not_here(integer=True):
                raise MissingError(reason)
            sample = spread_images(images, model.config.image_size, COMPARED_IMAGES, model.config.framing)
            assert sample is not None  # the export before has read them
            export_integer_onnx(model, out / OPENVINO_MODEL, sample, dialect="openvino")
            files["openvino"] = out / OPENVINO_MODEL
        except DmshError as error:
            if asked:
                raise
            refused["openvino"] = str(error)
    if asked:
        files = {asked: files.get(asked, out / MODEL)}
    return fastest(files, refused)


def served_file(out: Path, settings: EncoderSettings) -> Path:
    """Return the ONNX file that is served; a float model has one file for both runtimes."""
    for_openvino = out / OPENVINO_MODEL
    return for_openvino if settings.runtime == "openvino" and for_openvino.is_file() else out / MODEL
