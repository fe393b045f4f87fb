"""The known answer: a few images and their codes that travel inside an ONNX file.

An encoder computes them when it loads and refuses to serve if one bit differs: some CPUs' integer kernels
saturate silently, and another runtime or option can move a logit across 0.
"""

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import CheckError, InputError

__all__ = ["Bytes", "check", "dump", "load"]

_MAX_BYTES = 64 * 1024 * 1024  # of one decompressed array: a few images need far less
Bytes = npt.NDArray[np.uint8]


def dump(images: Bytes, codes: Bytes) -> str:
    """Return images (n, H, W, 3) uint8 and their codes (n, B) uint8 as text for ``Metadata.KNOWN_ANSWER``."""
    _check_pair(images, codes)
    return json.dumps({"images": _text_from_array(images), "codes": _text_from_array(codes)})


def load(text: str) -> tuple[Bytes, Bytes]:
    """Read back what :func:`dump` wrote: images (n, H, W, 3) uint8 and codes (n, B) uint8.

    Raises:
        InputError: the text is not a known answer, or is damaged.
    """
    try:
        fields = json.loads(text)
        images, codes = _array_from_text(fields["images"]), _array_from_text(fields["codes"])
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise InputError(f"the known answer is damaged ({error}): export the model again") from error
    _check_pair(images, codes)
    return images, codes


def check(encode: Callable[[Bytes], Bytes], text: str) -> None:
    """Raise :class:`CheckError` unless ``encode`` (images to codes) gives the known answer, every bit.

    Raises:
        CheckError: says how many bits differ and why that happens.
        InputError: the text is not a known answer.
    """
    images, codes = load(text)
    for count in (len(images), 1):  # one alone is computed by other kernels than a batch is
        _check_codes(encode(images[:count]), codes[:count])


def _check_codes(found: Bytes, expected: Bytes) -> None:
    if found.dtype != np.uint8 or found.shape != expected.shape:
        raise CheckError(
            f"known answer: expected codes uint8 {list(expected.shape)}, got {found.dtype} {list(found.shape)}"
        )
    wrong = int(np.unpackbits(found ^ expected).sum())
    if wrong:
        raise CheckError(
            f"known answer: {wrong} of {8 * expected.size} bits differ from the codes this model was exported "
            "with, so it would find wrong neighbours here; likely causes: another runtime or version than it was "
            "proven on, or a CPU whose integer kernels saturate"
        )


def _check_pair(images: Bytes, codes: Bytes) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"known answer: images must be uint8 [n, H, W, 3], got {images.dtype} {list(images.shape)}")
    if codes.dtype != np.uint8 or codes.ndim != 2 or len(codes) != len(images) or not len(codes):
        raise InputError(
            f"known answer: codes must be uint8 [{len(images)}, B] for at least one image, "
            f"got {codes.dtype} {list(codes.shape)}"
        )


def _text_from_array(array: Bytes) -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(array.tobytes(), level=9)).decode("ascii")
    return {"shape": list(array.shape), "zlib_base64": packed}


def _array_from_text(fields: dict[str, Any]) -> Bytes:
    inflate = zlib.decompressobj()
    data = inflate.decompress(base64.b64decode(fields["zlib_base64"], validate=True), _MAX_BYTES)
    if not inflate.eof:
        raise ValueError("an array is cut short or far too large")
    return np.frombuffer(data, dtype=np.uint8).reshape(fields["shape"])
