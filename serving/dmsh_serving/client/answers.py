"""What a server answers, as arrays with their meaning."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.contract import CODE, DISTANCES, GALLERY_VERSION, IDS, IMAGE, KEYS, LOGITS, MAX_BITS
from dmsh_serving.errors import InputError, MissingError

__all__ = ["Answer", "CodeSpace", "Tensor", "arrays_of", "code_space_of", "joined", "strings_of"]

Tensor = npt.NDArray[Any]

# What our models answer, each [rows, at least 1]; the first three agree in their second size.
_OF_RESULTS: Final = (IDS, DISTANCES, KEYS)
_KINDS: Final = {IDS: "<i8", DISTANCES: "<i4", KEYS: "O", GALLERY_VERSION: "O", CODE: "u1", LOGITS: "<f4"}
_TEXTS: Final = frozenset(name for name, kind in _KINDS.items() if kind == "O")
_MOST_TEXTS: Final = 1 << 20  # of an answer, 16 times what may be asked for: each takes some 60 bytes, an empty one too
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_WHOLE_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class Answer:
    """The k nearest images of N queries, ordered by (distance, id); re-ranking changes the order at equal distance.

    Attributes:
        ids: (N, k) int64; -1 if there are no more images.
        distances: (N, k) int32; 2147483647 if there are no more.
        keys: (N, k) object, str; empty if there are no more.
        gallery_version: (N,) object, str: which gallery answered each query (one for all queries of one request).
        code: (N, B) uint8, the queries' codes.
    """

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    keys: npt.NDArray[np.object_]
    gallery_version: npt.NDArray[np.object_]
    code: npt.NDArray[np.uint8]

    def of(self, query: int) -> "Answer":
        """Return the answer of one query alone, N = 1."""
        return Answer(**{name: values[query : query + 1] for name, values in vars(self).items()})


@dataclass(frozen=True)
class CodeSpace:
    """The codes that an encoder gives: its fingerprint, bits per code, and side of an image in pixels.

    ``parent_fingerprint`` is that of the code space which a low-precision encoder approximates.
    """

    fingerprint: str
    bits: int
    image_size: int
    parent_fingerprint: str | None = None


def arrays_of(answer: Any, names: Sequence[str], rows: int, url: str) -> dict[str, Tensor]:
    """Return the tensors ``names`` of an ``InferResult`` of the Triton at ``url``, each of ``rows`` rows.

    Raises:
        MissingError: one is missing, has other rows, or another shape or type than our models give; or its bytes do not
            agree with them: no Triton that works.
    """
    for name in _TEXTS.intersection(names):
        given = answer.get_output(name)
        if given is not None and math.prod(given.shape) > _MOST_TEXTS:
            raise MissingError(f"the Triton at {url} gave {name} as {list(given.shape)}: no model of ours")
    try:
        found = {name: answer.as_numpy(name) for name in names}
    except Exception as error:  # NumPy and struct raise nearly any kind
        raise MissingError(f"the Triton at {url} gave an answer that cannot be read ({error})") from error
    if not all(array is not None and array.ndim > 1 and len(array) == rows for array in found.values()):
        raise MissingError(f"the Triton at {url} gave an answer without {rows} rows of each of {', '.join(names)}")
    for name, kind in _KINDS.items():
        if name in found and (found[name].dtype != np.dtype(kind) or found[name].ndim != 2 or not found[name].size):
            raise MissingError(
                f"the Triton at {url} gave {name} as {found[name].dtype} {list(found[name].shape)}: no model of ours"
            )
    if len({found[name].shape for name in _OF_RESULTS if name in found}) > 1:
        raise MissingError(f"the Triton at {url} gave {', '.join(_OF_RESULTS)} of different numbers of images")
    return found


def joined(parts: Sequence[dict[str, Tensor]], names: Sequence[str], url: str) -> dict[str, Tensor]:
    """Return the answers of the Triton at ``url`` to several requests as one.

    Raises:
        MissingError: they differ in more than their rows.
    """
    for name in names:
        if len({part[name].shape[1:] for part in parts}) > 1:
            raise MissingError(f"the Triton at {url} gave {name} of another width in each of two answers")
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def code_space_of(config: Any, url: str) -> CodeSpace:
    """Return what the configuration of an encoder of the Triton at ``url``, a ``ModelConfig``, says of its codes.

    Raises:
        InputError: it is no encoder of ours.
    """
    said = {name: parameter.string_value for name, parameter in config.parameters.items()}
    sizes = [size for tensor in config.input if tensor.name == IMAGE for size in tensor.dims[:1]]
    parent = said.get("parent_fingerprint")
    fingerprints = [said.get("fingerprint", ""), *([] if parent is None else [parent])]
    if not (
        sizes
        and sizes[0] > 0
        and _WHOLE_NUMBER.fullmatch(said.get("bits", ""))
        and int(said["bits"]) <= MAX_BITS
        and all(map(_FINGERPRINT.fullmatch, fingerprints))
    ):
        raise InputError(f"{config.name} at {url} is no encoder made by dmsh-export repository")
    return CodeSpace(said["fingerprint"], int(said["bits"]), int(sizes[0]), parent)


def strings_of(array: Tensor) -> npt.NDArray[np.object_]:
    """Return what Triton gave as BYTES, of any shape, as str."""
    flat = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in array.ravel()]
    return np.array(flat, dtype=np.object_).reshape(array.shape)
