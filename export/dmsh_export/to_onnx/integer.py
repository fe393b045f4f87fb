"""Integer checkpoint -> one ONNX file in a dialect, proven statically and bit for bit before it is written."""

import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dmsh_export.compare.parity import ParityReport
from dmsh_export.compare.runners import OnnxRunner, OpenVinoRunner, Runner
from dmsh_export.graph import Dialect, with_shapes
from dmsh_export.prove.certificate import Certificate, certify
from dmsh_export.seal import sealed
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET
from dmsh_export.to_onnx.write import check_request, describe, write_proven
from dmsh_model.integer.layers import Logits
from dmsh_model.integer.reference import IntegerDMSH, outputs
from dmsh_serving.codes import pack
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.openvino import why_not_here

__all__ = ["IntegerExport", "export_integer_onnx", "known_answer_images"]

GIVEN_IMAGES = 3  # given images in the known answer, for each of two kinds
_AT_ONCE = 2
_LOOKED_AT = 64  # given images that are searched for them: some that reveal much are enough


@dataclass(frozen=True)
class IntegerExport:
    """What an export did: the file, its static certificate, and its parity with PyTorch."""

    path: Path
    certificate: Certificate
    parity: ParityReport


def export_integer_onnx(
    model: IntegerDMSH,
    out: Path,
    images: npt.NDArray[np.uint8],
    *,
    dialect: Dialect = "onnxruntime",
    opset: int = DEFAULT_OPSET,
    max_batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> IntegerExport:
    """Write ``model`` as the ONNX file ``out`` in ``dialect`` with its manifest.

    No file has the name ``out`` until the file, read back, is proven to be the network, and every bit and logit equals
    PyTorch's, for ``images`` (N, H, W, 3) uint8 and for batches as :func:`compare` makes them. They are computed with
    ONNX Runtime, and those of the openvino dialect with OpenVINO too, if it can serve here.

    Raises:
        CheckError: the proof fails, or one bit or logit differs from PyTorch's.
        InputError: no images, an opset out of range, or ``out`` is not in a folder.
    """
    check_request(out, opset, images)
    proto = onnx_from_network(model.network, dialect, opset)
    metadata: dict[str, str] = {Metadata.DIALECT: dialect}
    if dialect == "tensorrt":
        metadata[Metadata.PRECISION] = "int8"  # TensorRT compiles it unchanged, so its code space stays
    known = known_answer_images(model, images)
    logits = model.logits(known)
    describe(proto, model, known_answer.dump(known, pack(logits), logits), {"dialect": dialect}, metadata)
    proto = with_shapes(proto, out.name)  # as it will be written: the certificate names these bytes
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / out.name
        candidate.write_bytes(sealed(proto))
        certificate = certify(candidate, model.network)
    parity = write_proven(
        proto,
        model,
        out,
        images,
        options={"dialect": dialect, "opset": opset, "max_batch": max_batch},
        results={"certificate": certificate.to_dict()},
        max_batch=max_batch,
        on_progress=on_progress,
        runners_of=partial(_runners, dialect=dialect),
    )
    return IntegerExport(out, certificate, parity)


def _runners(path: Path, dialect: Dialect) -> list[Runner]:
    """Return what computes the codes of a file: ONNX Runtime, and OpenVINO if it can serve that dialect here."""
    with_openvino = dialect == "openvino" and why_not_here(integer=True) is None
    return [OnnxRunner(path), *([OpenVinoRunner(path)] if with_openvino else [])]


def known_answer_images(model: IntegerDMSH, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return images (n, H, W, 3) uint8 whose codes a wrong kernel is likely to change.

    Some are built to drive accumulators far: black, white, two checkerboards, noise of black and white. Others are
    among the first of ``images``: those that come closest to a layer's bound, and those with the smallest |logit|.
    Exact arithmetic has no noise at a threshold, so any error shows there first.
    """
    size = model.config.image_size
    board = (np.indices((size, size)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    noise = np.random.default_rng(0).integers(0, 2, board.shape, dtype=np.uint8) * np.uint8(255)
    built = np.stack([np.zeros_like(board), np.full_like(board, 255), board, 255 - board, noise])
    given = np.ascontiguousarray(images[:_LOOKED_AT])
    drive, margin = _drive_and_margin(model, given)
    driven = np.argsort(-drive, kind="stable")[:GIVEN_IMAGES]
    nearest = np.argsort(margin, kind="stable")[:GIVEN_IMAGES]
    return np.concatenate([built, given[np.union1d(driven, nearest)]])


def _drive_and_margin(
    model: IntegerDMSH, images: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Return how close each image brings an accumulator to its layer's bound, at most 1, and its smallest |logit|."""
    last = model.network.layers[-1]
    assert isinstance(last, Logits)  # held by IntegerNetwork
    exponent = last.exponent.astype(np.int32)
    drive = np.zeros(len(images))
    margins: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)

        def note(index: int, sums: torch.Tensor, rows: slice = rows) -> None:
            bounds = model.network.accumulators[index]
            peak = max(1, bounds.peak) if bounds else 1
            drive[rows] = np.maximum(drive[rows], sums.abs().flatten(1).amax(1).double().numpy() / peak)

        ((_, accumulators),) = deque(outputs(model.network, images[rows], note), maxlen=1)
        margins.append(np.abs(np.ldexp(accumulators.numpy().astype(np.float32), exponent)).min(axis=1))
    return drive, np.concatenate(margins)
