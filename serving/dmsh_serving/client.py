"""Ask a running Triton: ``with SearchClient("127.0.0.1:8001") as client: client.search(images, k=10)``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_serving.codes import Encoded
from dmsh_serving.contract import (
    CODE,
    DEFAULT_GRPC_PORT,
    DEFAULT_K,
    DISTANCES,
    ENCODER_MODEL,
    FILE,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    PAD_ID,
    RADIUS,
    RERANK,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
    K,
)
from dmsh_serving.errors import DmshError, InputError, MissingError

__all__ = [
    "CHANNEL_OPTIONS",
    "Answer",
    "CodeSpace",
    "SearchClient",
    "Tensor",
    "code_space_of",
    "error_of",
    "strings_of",
]

DEFAULT_URL = f"127.0.0.1:{DEFAULT_GRPC_PORT}"
DEFAULT_TIMEOUT_SECONDS = 30.0
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # a server that was started again is found at once
]
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


class SearchClient:
    """A connection to the Triton at ``url`` (host:port of gRPC); ``timeout`` limits each request, in seconds.

    Any number of images may be given: they are sent in batches of the server's ``max_batch_size``.

    Raises:
        InputError: the server refuses the request; its message says what it expected.
        MissingError: there is no server, it lacks these models, or it gives no answer in time.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        try:
            import tritonclient.grpc as triton
        except ImportError as error:
            raise MissingError("tritonclient is not installed: pip install 'dmsh-toolkit[client]'") from error
        self.url, self.timeout = url, timeout
        self._triton = triton
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
        self._configs: dict[str, Any] = {}

    def __enter__(self) -> "SearchClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def search(
        self,
        images: npt.NDArray[np.uint8],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Sequence[int] | npt.NDArray[np.integer] | None = None,
        rerank: str | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each of ``images`` (N, H, W, 3) uint8, RGB.

        Args:
            images: the queries.
            k: results per query; if there are fewer, the rest is padding.
            radius: only images at most this many bits away; more than ``k`` of them are cut at ``k``.
            allowed: only images with these ids; ids that the gallery does not have do not matter.
            rerank: "asymmetric" orders those at equal distance by the query's logits, not by id; see
                :mod:`dmsh_serving.ranker.rerank`.
        """
        return self._search(SEARCH_MODEL, IMAGE, images, k, radius, allowed, rerank)

    def search_files(
        self,
        files: Sequence[bytes | Path],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Sequence[int] | npt.NDArray[np.integer] | None = None,
        rerank: str | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each image file, given as bytes or path; see :meth:`search`."""
        data = np.empty((len(files), 1), dtype=np.object_)
        data[:, 0] = [file.read_bytes() if isinstance(file, Path) else file for file in files]
        return self._search(SEARCH_FILE_MODEL, FILE, data, k, radius, allowed, rerank)

    def encode(self, images: npt.NDArray[np.uint8], *, model: str = ENCODER_MODEL) -> Encoded:
        """Return the codes (N, B) uint8 and logits (N, K) float32 of ``images`` (N, H, W, 3) uint8, RGB."""
        found = self._infer_all(model, {IMAGE: images}, [CODE, LOGITS])
        return Encoded(found[CODE], found[LOGITS])

    def code_space(self, model: str = ENCODER_MODEL) -> CodeSpace:
        """Return what the configuration of an encoder says of its codes.

        Raises:
            InputError: ``model`` is no encoder of ours.
        """
        return code_space_of(self._config(model), self.url)

    def max_batch(self, model: str) -> int:
        """Return the most rows ``model`` takes in one request."""
        return max(1, int(self._config(model).max_batch_size))

    def _config(self, model: str) -> Any:
        if model not in self._configs:
            found = self._asked(lambda: self._client.get_model_config(model, client_timeout=self.timeout))
            self._configs[model] = found.config
        return self._configs[model]

    def _search(
        self,
        model: str,
        source: str,
        data: Tensor,
        k: int,
        radius: int | None,
        allowed: Sequence[int] | npt.NDArray[np.integer] | None,
        rerank: str | None,
    ) -> Answer:
        inputs = {source: data, K: _for_each(len(data), "k", k)}
        if radius is not None:
            inputs[RADIUS] = _for_each(len(data), "radius", radius)
        if allowed is not None:
            inputs[FILTER] = np.broadcast_to(_filter(allowed), (len(data), max(1, len(allowed))))
        if rerank is not None:
            inputs[RERANK] = np.full((len(data), 1), rerank.encode(), dtype=np.object_)
        found = self._infer_all(model, inputs, [IDS, DISTANCES, KEYS, GALLERY_VERSION, CODE])
        return Answer(
            ids=found[IDS],
            distances=found[DISTANCES],
            keys=strings_of(found[KEYS]),
            gallery_version=strings_of(found[GALLERY_VERSION])[:, 0],
            code=found[CODE],
        )

    def _infer_all(self, model: str, inputs: dict[str, Tensor], outputs: list[str]) -> dict[str, Tensor]:
        if not len(next(iter(inputs.values()))):
            raise InputError(f"{model}: there is nothing to ask, 0 images were given")
        parts = [self._infer(model, part, outputs) for part in _batches(inputs, self.max_batch(model))]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _infer(self, model: str, inputs: dict[str, Tensor], outputs: list[str]) -> dict[str, Tensor]:
        from tritonclient.utils import np_to_triton_dtype

        sent = []
        for name, array in inputs.items():
            tensor = self._triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            sent.append(tensor.set_data_from_numpy(array))
        wanted = [self._triton.InferRequestedOutput(name) for name in outputs]
        # Told to the server too, which then drops from its queues what nobody waits for any more: an ensemble of
        # Triton 24.10 hands this time on to its steps, but not that the call was cancelled.
        microseconds = max(1, int(self.timeout * 1e6))
        answer = self._asked(
            lambda: self._client.infer(model, sent, outputs=wanted, client_timeout=self.timeout, timeout=microseconds)
        )
        return {name: answer.as_numpy(name) for name in outputs}

    def _asked(self, call: Callable[[], Any]) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return call()
        except InferenceServerException as error:
            raise error_of(error, self.url, self.timeout) from error


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


def error_of(error: Any, url: str, timeout: float) -> DmshError:
    """Return what to tell a person whose call of the Triton at ``url`` raised an ``InferenceServerException``."""
    status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
    match status:
        case "INVALID_ARGUMENT":
            # Triton's own prefix and its advice about configurations do not help a caller.
            return InputError(message.removeprefix("[request id: <id_unknown>] ").split(" NOTE: ")[0])
        case "NOT_FOUND":
            return MissingError(f"the Triton at {url} does not serve this: {message}")
        case "UNAVAILABLE" if "connect" in message:
            return MissingError(f"no Triton at {url}: start one with dmsh-serve start --repository DIR")
        case "DEADLINE_EXCEEDED":
            return MissingError(f"the Triton at {url} did not answer within {timeout:g} s")
        case "UNAVAILABLE" if "timeout expired" in message:
            return MissingError(f"the Triton at {url} is too busy: the request waited too long in its queue")
        case "UNAVAILABLE" if "maximum queue size" in message:
            return MissingError(f"the Triton at {url} is too busy: its queue is full, try again later")
        case other:
            return MissingError(f"the Triton at {url} failed ({other}): {message}")


def _batches(inputs: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(next(iter(inputs.values()))), size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def _for_each(count: int, name: str, value: int) -> npt.NDArray[np.int64]:
    """Return ``value`` for each of ``count`` images, (count, 1); what it may be, the server says."""
    try:
        return np.full((count, 1), value, dtype=np.int64)
    except OverflowError:
        raise InputError(f"{name} = {value} is out of range: it is sent as an int64") from None


def _filter(allowed: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the ids of a filter, (F,) int64, F at least 1: without ids one padding id, which lets nothing through."""
    given = np.asarray(allowed)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"allowed must be ids, whole numbers [F], got {given.dtype} {list(given.shape)}")
    if given.size and (given.min() < 0 or given.max() > np.iinfo(np.int64).max):
        raise InputError(f"allowed holds ids from {given.min()} to {given.max()}: ids are 0 or more, and int64")
    return given.astype(np.int64) if given.size else np.array([PAD_ID])


def strings_of(array: Tensor) -> npt.NDArray[np.object_]:
    """Return what Triton gave as BYTES, of any shape, as str."""
    flat = [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel()]
    return np.array(flat, dtype=np.object_).reshape(array.shape)
