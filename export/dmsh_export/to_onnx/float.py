"""Checkpoint -> one ONNX file, from UINT8 image to logits and packed code, dynamic in the batch."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from dmsh_export.compare.parity import ParityReport
from dmsh_export.to_onnx.fold import FoldStep, fold
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET
from dmsh_export.to_onnx.packing import packing
from dmsh_export.to_onnx.write import check_request, describe, write_proven
from dmsh_model.network import DMSH
from dmsh_serving.codes import pack
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import InputError

__all__ = ["OnnxExport", "export_onnx"]

KNOWN_ANSWER_IMAGES = 8
KNOWN_ANSWER_PIXELS = 64 * 80 * 80  # of the images it is chosen from


@dataclass(frozen=True)
class OnnxExport:
    """What an export did: the file, what was folded into it, and its parity with PyTorch."""

    path: Path
    fold_steps: tuple[FoldStep, ...]
    parity: ParityReport


class _WithCode(nn.Module):
    """Image -> (logits, code): threshold and bit packing inside the graph."""

    def __init__(self, network: nn.Module, bits: int) -> None:
        super().__init__()
        self.network = network
        self.weights: Tensor
        self.register_buffer("weights", torch.from_numpy(packing(bits)), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        code = ((logits > 0).to(torch.float32) @ self.weights).to(torch.uint8)
        return logits, code


def export_onnx(
    model: DMSH,
    out: Path,
    images: npt.NDArray[np.uint8],
    *,
    folded: bool = True,
    opset: int = DEFAULT_OPSET,
    max_batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> OnnxExport:
    """Write ``model`` as the ONNX file ``out`` with its manifest, proven against PyTorch on ``images``.

    It ends with onnx.checker, shape inference and a bit-for-bit comparison over ``images`` (N, H, W, 3) uint8 and over
    batches of the sizes of :func:`compare`. No file has the name ``out`` until all have passed.

    Raises:
        CheckError: one bit differs from PyTorch's.
        InputError: no images, an opset out of range, or ``out`` is not in a folder.
    """
    check_request(out, opset, images)
    model.eval()
    network, steps = fold(model) if folded else (model, [FoldStep("everything", False, "--no-fold was given")])
    proto = _proto_from_network(network, model, opset)
    _forget_the_exporter(proto)
    describe(proto, model, known_answer.dump(*_telling(model, images)), {"folded": folded})
    report = write_proven(
        proto,
        model,
        out,
        images,
        options={"fold": folded, "opset": opset, "max_batch": max_batch},
        results={"fold": [vars(step) for step in steps]},
        max_batch=max_batch,
        on_progress=on_progress,
    )
    return OnnxExport(out, tuple(steps), report)


def _proto_from_network(network: nn.Module, model: DMSH, opset: int) -> onnx.ModelProto:
    size = model.config.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            _WithCode(network, model.config.bits).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[IMAGE],
            output_names=[LOGITS, CODE],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=opset,
            # The exporter's own optimiser folds BN in float32 without a report; fold.py does so in float64.
            optimize=False,
        )
    if program is None:
        raise InputError("the network cannot be exported to ONNX")
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    return program.model_proto


def _forget_the_exporter(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes: source paths and traces."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
        value.ClearField("doc_string")
    del proto.graph.metadata_props[:]
    proto.graph.ClearField("doc_string")
    proto.graph.name = "dmsh"


def _telling(model: DMSH, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a few images whose codes reveal a broken encoder, and those codes.

    The candidates are spread over ``images`` and have clear logits, because a known answer must not fail on rounding
    noise at a threshold. Those are chosen that together show the most bits in both values: an encoder that ignores its
    input must fail.
    """
    count = min(len(images), max(8, min(64, KNOWN_ANSWER_PIXELS // model.config.image_size**2)))
    sample = np.ascontiguousarray(images[np.linspace(0, len(images) - 1, count).astype(np.int64)])
    logits = model.logits(sample)
    margins = np.abs(logits).min(axis=1)
    values = np.concatenate([logits > 0, logits <= 0], axis=1)
    shown = np.zeros(values.shape[1], bool)
    left = [int(row) for row in np.argsort(-margins, kind="stable")[: max(KNOWN_ANSWER_IMAGES, count // 2)]]
    chosen: list[int] = []
    while left and len(chosen) < KNOWN_ANSWER_IMAGES:
        best = max(left, key=lambda row: (int((values[row] & ~shown).sum()), float(margins[row])))
        left.remove(best)
        chosen.append(best)
        shown |= values[best]
    return sample[chosen], pack(logits[chosen])
