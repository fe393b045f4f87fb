"""The float networks whose codes are compared, trained or kept from the last run, and ONNX Runtime's INT8 of them."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from benchmarks.encode.files import quantise_static
from dmsh_export.to_onnx.float import export_onnx
from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import Indices, LabelledImages
from dmsh_model.data.load import MNIST_5K, MNIST_5K_MEAN, MNIST_5K_STD
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_model.frozen.run import fit_head
from dmsh_model.network import DMSH
from dmsh_model.training import run as training
from dmsh_model.training.options import TrainingOptions
from dmsh_model.weights.read import Pretrained
from dmsh_serving.codes import Codes, pack
from dmsh_serving.contract import IMAGE, LOGITS

__all__ = ["float_network", "static_int8_codes"]

_BITS: Final = 64
_CALIBRATION_IMAGES = 100  # of ONNX Runtime's static INT8, which keeps what it collects in memory
_PROVEN_IMAGES = 4

OnStage = Callable[[str, int, int], None]


def float_network(
    data: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    weights: Pretrained | None,
    folder: Path,
    on_stage: OnStage,
) -> DMSH:
    """Return the network at ``folder`` if it was made from the same data in the same way; else train it.

    Without pretrained ``weights`` a small VGG is trained as a whole; with them, a head on their frozen trunk.
    """
    if folder.exists():
        record = checkpoint.read_header(folder).get("training", {})
        names = ("options", "data_sha256", "pretrained_sha256")
        made_as = (*(record.get(name) for name in names), record.get("split", {}).get("sha256"))
        sha256 = weights.sha256 if weights else None
        if made_as == (dataclasses.asdict(options), data.sha256, sha256, split_images(data, split_options).sha256):
            return checkpoint.load(folder)
    config = HashConfig(
        weights.backbone if weights else "vgg_small",
        _BITS,
        data.images.shape[1],
        lateral_features=64,
        fusion_features=128,
        **_preprocessing(data, weights),
        num_classes=len(data.class_names),
    )
    if weights is None:
        return training.fit(
            config,
            data,
            split_options,
            options,
            folder,
            overwrite=True,
            on_epoch=lambda epoch: on_stage("training in float", epoch.number, epoch.of),
        ).model
    return fit_head(
        config,
        data,
        split_options,
        options,
        folder,
        weights,
        cache=folder.parent.parent / "taps",  # shared by the seeds
        overwrite=True,
        on_taps=lambda done, of: on_stage("features of the frozen trunk", done, of),
        on_epoch=lambda epoch: on_stage("training the head in float", epoch.number, epoch.of),
    ).model


def _preprocessing(data: LabelledImages, weights: Pretrained | None) -> dict[str, Any]:
    if weights:
        return weights.preprocessing
    return {"mean": MNIST_5K_MEAN, "std": MNIST_5K_STD} if data.source == MNIST_5K else {}


def static_int8_codes(model: DMSH, data: LabelledImages, rows: Indices) -> Codes:
    """Return the codes of all images by ONNX Runtime's own static INT8 of ``model``, calibrated on some of ``rows``."""
    calibration = data.images[rows[:_CALIBRATION_IMAGES]]
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "static.onnx"
        export_onnx(model, source, calibration[:_PROVEN_IMAGES], max_batch=1)
        quantise_static(source, target, "QDQ", calibration)
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        logits = [session.run([LOGITS], {IMAGE: image[None]})[0] for image in data.images]
    return pack(np.concatenate(logits))
