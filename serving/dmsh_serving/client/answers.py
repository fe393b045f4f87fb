"""What a server answers, as arrays with their meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.contract import IMAGE
from dmsh_serving.errors import InputError, MissingError

__all__ = ["Answer", "CodeSpace", "Tensor", "arrays_of", "code_space_of", "strings_of"]

Tensor = npt.NDArray[Any]


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
        MissingError: one is missing, has other rows, or its bytes do not agree with its shape: no Triton that works.
    """
    try:
        found = {name: answer.as_numpy(name) for name in names}
    except Exception as error:  # NumPy and struct raise nearly any kind
        raise MissingError(f"the Triton at {url} gave an answer that cannot be read ({error})") from error
    if not all(array is not None and array.ndim > 1 and len(array) == rows for array in found.values()):
        raise MissingError(f"the Triton at {url} gave an answer without {rows} rows of each of {', '.join(names)}")
    return found


def code_space_of(config: Any, url: str) -> CodeSpace:
    """Return what the configuration of an encoder of the Triton at ``url``, a ``ModelConfig``, says of its codes.

    Raises:
        InputError: it is no encoder of ours.
    """
    said = {name: parameter.string_value for name, parameter in config.parameters.items()}
    sizes = [tensor.dims[0] for tensor in config.input if tensor.name == IMAGE]
    if not sizes or not {"bits", "fingerprint"} <= said.keys():
        raise InputError(f"{config.name} at {url} is no encoder made by dmsh-export repository")
    return CodeSpace(said["fingerprint"], int(said["bits"]), int(sizes[0]), said.get("parent_fingerprint"))


def strings_of(array: Tensor) -> npt.NDArray[np.object_]:
    """Return what Triton gave as BYTES, of any shape, as str."""
    flat = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in array.ravel()]
    return np.array(flat, dtype=np.object_).reshape(array.shape)
