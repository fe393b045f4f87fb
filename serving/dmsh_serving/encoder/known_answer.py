"""The known answer: a few images and their codes that travel inside an ONNX file.

An encoder computes them when it loads and refuses to serve if one bit differs: some CPUs' integer kernels
saturate silently, and another runtime or option can move a logit across 0. An integer network has the same logits on
every machine, so its known answer holds them too: a kernel that is wrong for few codes is wrong for many logits.
"""

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Encoded
from dmsh_serving.errors import CheckError, InputError

__all__ = ["Bytes", "check", "dump", "load"]

_MAX_BYTES = 64 * 1024 * 1024  # of one decompressed array: a few images need far less
_CAUSES = "likely causes: another runtime or version than it was proven on, or a CPU whose integer kernels saturate"
Bytes = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


def dump(images: Bytes, codes: Bytes, logits: Logits | None = None) -> str:
    """Return images (n, H, W, 3) uint8 and their codes (n, B) uint8 as text for ``Metadata.KNOWN_ANSWER``.

    ``logits`` (n, K) float32 are those of an integer network.
    """
    _check_pair(images, codes)
    fields = {"images": _text_from_array(images), "codes": _text_from_array(codes)}
    if logits is not None:
        fields["logits"] = _text_from_array(np.ascontiguousarray(logits, "<f4").view(np.uint8))
    return json.dumps(fields)


def load(text: str) -> tuple[Bytes, Bytes]:
    """Read back what :func:`dump` wrote: images (n, H, W, 3) uint8 and codes (n, B) uint8.

    Raises:
        InputError: the text is not a known answer, or is damaged.
    """
    images, codes, _ = _loaded(text)
    return images, codes


def _loaded(text: str) -> tuple[Bytes, Bytes, Logits | None]:
    try:
        fields = json.loads(text)
        images, codes = _array_from_text(fields["images"]), _array_from_text(fields["codes"])
        logits = _array_from_text(fields["logits"]).view("<f4") if "logits" in fields else None
        if logits is not None and (logits.ndim, len(logits)) != (2, len(images)):
            raise ValueError(f"logits {list(logits.shape)}")
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise InputError(f"the known answer is damaged ({error}): export the model again") from error
    _check_pair(images, codes)
    return images, codes, logits


def check(encode: Callable[[Bytes], Encoded], text: str) -> None:
    """Raise :class:`CheckError` unless ``encode`` gives the known answer, every bit, and every logit that it holds.

    Raises:
        CheckError: says how many bits or logits differ and why that happens.
        InputError: the text is not a known answer.
    """
    images, codes, logits = _loaded(text)
    for count in (len(images), 1):  # one alone is computed by other kernels than a batch is
        found = encode(images[:count])
        _check_codes(found.code, codes[:count])
        if logits is not None:
            _check_logits(found.logits, logits[:count])


def _check_codes(found: Bytes, expected: Bytes) -> None:
    if found.dtype != np.uint8 or found.shape != expected.shape:
        raise CheckError(
            f"known answer: expected codes uint8 {list(expected.shape)}, got {found.dtype} {list(found.shape)}"
        )
    wrong = int(np.unpackbits(found ^ expected).sum())
    if wrong:
        raise CheckError(
            f"known answer: {wrong} of {8 * expected.size} bits differ from the codes this model was exported "
            f"with, so it would find wrong neighbours here; {_CAUSES}"
        )


def _check_logits(found: Logits, expected: Logits) -> None:
    if not np.array_equal(found, expected):
        wrong = f"{int((found != expected).sum())} of {expected.size}" if found.shape == expected.shape else "all"
        raise CheckError(
            f"known answer: {wrong} logits differ from those of the integer network, which are the same on every "
            f"machine, so codes of other images would be wrong here; {_CAUSES}"
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
