"""Checkpoint -> one ONNX file, from UINT8 image to logits and packed code, dynamic in the batch."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from dmsh_export.compare.parity import ParityReport, compare
from dmsh_export.compare.runners import OnnxRunner, Runner, TorchRunner
from dmsh_export.manifest import publish, write_manifest
from dmsh_export.to_onnx.fold import FoldStep, fold
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET, MIN_OPSET
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving import __version__
from dmsh_serving.codes import bytes_per_code, pack
from dmsh_serving.contract import CODE, IMAGE, LOGITS, Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, InputError

__all__ = ["OnnxExport", "check_request", "describe", "export_onnx", "write_proven"]

KNOWN_ANSWER_IMAGES = 8
KNOWN_ANSWER_PIXELS = 64 * 80 * 80  # of the images it is chosen from
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "numpy")


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
        # Packing as one product: bit j weighs 2^(7 - j mod 8) in byte j // 8. Sums stay below 256: exact in any type.
        weights = torch.zeros(bits, bytes_per_code(bits))
        for bit in range(bits):
            weights[bit, bit // 8] = 2.0 ** (7 - bit % 8)
        self.weights: Tensor
        self.register_buffer("weights", weights, persistent=False)

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
    batches of 1 to ``max_batch``. No file has the name ``out`` until all have passed.

    Raises:
        CheckError: one bit differs from PyTorch's.
        InputError: no images, an opset out of range, or ``out`` is not in a folder.
    """
    check_request(out, opset, images)
    model.eval()
    network, steps = fold(model) if folded else (model, [FoldStep("everything", False, "--no-fold was given")])
    proto = _proto_from_network(network, model, opset)
    _forget_the_exporter(proto)
    describe(proto, model, _telling(model, images), {"folded": folded})
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
    equal_logits: bool = False,
    runners_of: Callable[[Path], Sequence[Runner]] = lambda path: [OnnxRunner(path)],
) -> ParityReport:
    """Write ``proto``, an encoder made from ``model``, as ``out`` with its manifest, if no bit differs on ``images``.

    ``results`` go into the manifest beside the parity. With ``equal_logits``, the logits must be equal too.
    ``runners_of`` gives what runs the file.

    Raises:
        CheckError: one bit (or logit) differs from PyTorch's.
    """
    onnx.checker.check_model(proto, full_check=True)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    with publish(out) as (candidate,):
        candidate.write_bytes(proto.SerializeToString(deterministic=True))
        report = compare(
            TorchRunner(model), runners_of(candidate), images, max_batch=max_batch, on_progress=on_progress
        )
        if not report.passed:
            raise CheckError(f"{out} is not written: {report.summary()}")
        worst = max(target.worst_logit_error for target in report.targets)
        if equal_logits and worst:
            raise CheckError(
                f"{out} is not written: its logits differ from PyTorch's by up to {worst:.1e}, they must not"
            )
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


def describe(
    proto: onnx.ModelProto,
    model: DMSH | IntegerDMSH,
    answer: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    options: dict[str, Any],
    more: dict[str, str] | None = None,
) -> None:
    """Write the metadata that a reader needs: code space, sizes, config with ``options``, known ``answer``."""
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
            Metadata.KNOWN_ANSWER: known_answer.dump(*answer),
            **(more or {}),
        },
    )


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
