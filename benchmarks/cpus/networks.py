"""The two integer networks that every machine computes: that of demo/checkpoint, and a VGG-11 with seeded weights.

Both are quantised on real images, exported in every dialect, and their reference is PyTorch's integer arithmetic here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import dmsh_model
from dmsh_export.graph import Dialect
from dmsh_export.quantise.run import quantise
from dmsh_export.to_onnx.integer import export_integer_onnx
from dmsh_model.config import HashConfig
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.load import MNIST_5K, load_labelled
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.images.read import ImageSet

__all__ = ["DIALECTS", "Bytes", "Network", "NetworkName", "networks"]

NetworkName = Literal["demo", "vgg11_bn"]
Bytes = npt.NDArray[np.uint8]
DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)
_DEMO_CHECKPOINT: Final = Path(__file__).parents[2] / "demo" / "checkpoint"
_MNIST_SIZE, _VGG_SIZE = 32, 64
_VGG_CALIBRATION = 96  # images
_CALIBRATION_BATCH = 64
_PROVEN = 16  # images on which the export compares the file with PyTorch before it is used here


@dataclass(frozen=True, eq=False)
class Network:
    """One integer network in every dialect, and what PyTorch computes.

    Attributes:
        name: for people.
        fingerprint: its code space.
        bits: K of its codes.
        files: the ONNX file of each dialect.
        known_answer: of the files, as :mod:`dmsh_serving.encoder.known_answer` writes it.
        images: (N, H, W, 3) uint8; the first ``known`` are the known answer's, the others real ones.
        known: how many images the known answer has.
        code: (N, B) uint8, PyTorch's.
        logits: (N, K) float32, PyTorch's: integers times powers of two.
    """

    name: NetworkName
    fingerprint: str
    bits: int
    files: dict[Dialect, Path]
    known_answer: str
    images: Bytes
    known: int
    code: Bytes
    logits: npt.NDArray[np.float32]


def networks(names: tuple[NetworkName, ...], count: int, folder: Path) -> Iterator[Network]:
    """Yield the networks ``names``, their ONNX files in ``folder``, with up to ``count`` real images each.

    The real images are MNIST-5k's queries, which no scale was calibrated on.
    """
    data = load_labelled(MNIST_5K, _MNIST_SIZE)
    split = split_images(data, SplitOptions())
    makers: dict[NetworkName, Callable[[LabelledImages, Split], tuple[IntegerDMSH, Bytes]]] = {
        "demo": _demo,
        "vgg11_bn": _vgg,
    }
    for name in names:
        model, images = makers[name](data, split)
        yield _exported(name, model, images, count, folder)


def _exported(name: NetworkName, model: IntegerDMSH, images: Bytes, count: int, folder: Path) -> Network:
    files: dict[Dialect, Path] = {}
    for dialect in DIALECTS:
        files[dialect] = folder / f"{name}-{dialect}.onnx"
        export_integer_onnx(model, files[dialect], images[:_PROVEN], dialect=dialect, max_batch=1)
    with OnnxEncoder(files["onnxruntime"], check_known_answer=False) as encoder:
        text = encoder.metadata.known_answer or ""
    known, _ = known_answer.load(text)
    compared = np.concatenate([known, images[:count]])
    return Network(
        name,
        model.fingerprint,
        model.config.bits,
        files,
        text,
        compared,
        len(known),
        model.codes(compared),
        model.logits(compared),
    )


def _demo(data: LabelledImages, split: Split) -> tuple[IntegerDMSH, Bytes]:
    """Return the integer form of demo/checkpoint, calibrated on its training images, and the query images."""
    model = dmsh_model.load(_DEMO_CHECKPOINT)
    assert isinstance(model, DMSH)  # what the demo's checkpoint is
    batches = (
        ImageSet(data.images[rows], [data.names[row] for row in rows], [])
        for rows in np.split(split.train, range(_CALIBRATION_BATCH, len(split.train), _CALIBRATION_BATCH))
    )
    return quantise(model, batches).model, np.ascontiguousarray(data.images[split.query])


def _vgg(data: LabelledImages, split: Split) -> tuple[IntegerDMSH, Bytes]:
    """Return a VGG-11 DMSH of 64 bits for 64 x 64 pixels with random weights, and the query images."""
    rows = split.train[:_VGG_CALIBRATION]
    images = _enlarged(data.images[rows])
    torch.manual_seed(0)
    model = DMSH(HashConfig("vgg11_bn", 64, _VGG_SIZE))
    _settle(model, images)
    batches = [ImageSet(images, [data.names[row] for row in rows], [])]
    return quantise(model, batches).model, _enlarged(data.images[split.query])


@torch.inference_mode()
def _settle(model: DMSH, images: Bytes) -> None:
    """Give ``model`` the batch statistics of ``images``, and logits around 0: every bit is then 1 for about half."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    model.train()
    model(torch.from_numpy(images))
    model.eval()
    model.hash.bias.sub_(torch.from_numpy(np.median(model.logits(images), axis=0)))


def _enlarged(images: Bytes) -> Bytes:
    size = (_VGG_SIZE, _VGG_SIZE)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images])
