"""Learned codes to time ranking on: the demo model's codes of real images, changed at random.

The integer form of the demo checkpoint encodes the 5,000 images of MNIST-5k, shifted, turned and resized by random
amounts as in training, as often as needed for the number of codes. Every changed image is really encoded. The codes are
kept in a folder, one file per 100,000 codes, so the next run encodes only what is missing.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["CALIBRATION_IMAGES", "CHECKPOINT", "Codes", "learned_codes", "real_images"]

Codes = npt.NDArray[np.uint8]
Images = npt.NDArray[np.uint8]

CHECKPOINT: Final = Path(__file__).parents[2] / "demo" / "checkpoint"
CALIBRATION_IMAGES: Final = 400
_FILE = 100_000
_BATCH = 100  # divides both the 5,000 images and a file
_PROVEN_IMAGES = 8


def learned_codes(count: int, folder: Path, on_progress: Callable[[int, int], None] = lambda _, __: None) -> Codes:
    """Return codes (count, 8) uint8 of changed images, read from ``folder``; codes that it lacks are added.

    ``on_progress`` is called with (codes done, codes in all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes = np.empty((count, 8), np.uint8)
    for number, first in enumerate(range(0, count, _FILE)):
        path = folder / f"codes-{number:04d}.npy"
        if not path.exists():
            _encode_file(number, path, lambda done, first=first: on_progress(first + done, count))  # type: ignore[misc]
        here = codes[first : first + _FILE]
        here[:] = np.load(path)[: len(here)]
    return codes


def _encode_file(number: int, path: Path, on_progress: Callable[[int], None]) -> None:
    from dmsh_serving.encoder.onnxruntime import OnnxEncoder
    from dmsh_serving.files import write_atomically

    encoder = OnnxEncoder(_encoder_file(path.parent), check_known_answer=True)
    codes = np.empty((_FILE, 8), np.uint8)
    for batch, images in enumerate(_changed_images(number)):
        codes[batch * _BATCH : (batch + 1) * _BATCH] = encoder.infer(images).code
        on_progress((batch + 1) * _BATCH)
    encoder.close()
    content = io.BytesIO()
    np.save(content, codes)
    write_atomically(path, content.getvalue())


def _changed_images(number: int) -> Iterator[Images]:
    """Yield the images (_BATCH, 32, 32, 3) uint8 of one file; the number of the file is the random seed."""
    import torch

    from dmsh_model.training.augmentation import augment
    from dmsh_model.training.options import Augmentation

    images = torch.from_numpy(real_images()[0])
    generator = torch.Generator().manual_seed(number)
    for batch in range(_FILE // _BATCH):
        start = batch * _BATCH % len(images)
        changed = augment(images[start : start + _BATCH], Augmentation(), generator)
        yield changed.round().clamp(0, 255).to(torch.uint8).numpy()


def real_images() -> tuple[Images, npt.NDArray[np.int64]]:
    """Return the images (5000, 32, 32, 3) uint8 of MNIST-5k and their labels (5000,) int64."""
    from dmsh_model.data.load import MNIST_5K, load_labelled

    data = load_labelled(MNIST_5K, 32)
    return data.images, data.labels.astype(np.int64)


def _encoder_file(folder: Path) -> Path:
    """Return the integer encoder's ONNX file; make it from the demo checkpoint if it is not there yet."""
    from dmsh_export.quantise.run import quantise
    from dmsh_export.to_onnx.integer import export_integer_onnx
    from dmsh_model import checkpoint
    from dmsh_serving.images.read import ImageSet

    path = folder / "encoder.onnx"
    if not path.exists():
        images, _ = real_images()
        sample = images[np.random.default_rng(0).permutation(len(images))[:CALIBRATION_IMAGES]]
        batches = (
            ImageSet(sample[start : start + 50], [f"{start + row}" for row in range(50)], [])
            for start in range(0, len(sample), 50)
        )
        integer = quantise(checkpoint.load(CHECKPOINT), batches).model
        export_integer_onnx(integer, path, sample[:_PROVEN_IMAGES], dialect="onnxruntime", max_batch=8)
    return path
