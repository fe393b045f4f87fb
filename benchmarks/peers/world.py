"""One network and one gallery for every service: EfficientNet-Lite0 at 128 pixels, as floats and as integers."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from benchmarks.common.networks import fit_statistics, photograph_crops
from dmsh_export.quantise.batches import batch_size
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.float import export_onnx
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH
from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.images.read import ImageSet
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import PythonBackend, RepositorySpec

__all__ = ["World", "make_world"]

_BACKBONE: Final = "tf_efficientnet_lite0"
_SIZE, _BITS, _THREADS = 128, 64, 2
_PICTURE: Final = (640, 480)


@dataclass(frozen=True)
class World:
    """What the services are made of.

    Attributes:
        checkpoint: the float checkpoint, a folder.
        float_model: its ONNX file.
        repository: serves its integer form.
        codes: (N, 8) uint8, an .npy file: the same codes as the gallery's.
        files: image files to ask with.
    """

    checkpoint: Path
    float_model: Path
    repository: Path
    codes: Path
    files: list[bytes]


def make_world(folder: Path, codes: int) -> World:
    """Make everything in ``folder``; speed does not depend on weights, so they are random."""
    images = photograph_crops(96, _SIZE)
    torch.manual_seed(0)
    model = DMSH(HashConfig(_BACKBONE, _BITS, _SIZE, lateral_features=64))
    fit_statistics(model, images)
    checkpoint.save(model.eval(), folder / "checkpoint")
    export_onnx(model, folder / "float.onnx", images[:8], max_batch=1)
    names = [str(row) for row in range(len(images))]
    size = batch_size(_SIZE)
    batches = [
        ImageSet(images[start : start + size], names[start : start + size], []) for start in range(0, len(images), size)
    ]
    integer = quantise(model, batches).model
    export_integer_onnx(integer, folder / "integer.onnx", images[:8], dialect="openvino", max_batch=8)
    stored = uniform_codes(codes, _BITS, seed=0)
    np.save(folder / "codes.npy", stored)
    gallery.build(folder / "gallery", stored, None, None, bits=_BITS, fingerprint=integer.fingerprint)
    spec = RepositorySpec(
        folder / "gallery",
        _BITS,
        _SIZE,
        integer.fingerprint,
        model=folder / "integer.onnx",
        encoder=PythonBackend(_THREADS, "openvino"),
        framing=integer.config.framing,
    )
    write_repository(folder / "repository", spec)
    return World(folder / "checkpoint", folder / "float.onnx", folder / "repository", folder / "codes.npy", _files(16))


def _files(count: int) -> list[bytes]:
    """Return JPEGs of 640 x 480, as a page would send them."""
    found = []
    for image in photograph_crops(count, _PICTURE[1]):
        file = io.BytesIO()
        Image.fromarray(image).resize(_PICTURE).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found
