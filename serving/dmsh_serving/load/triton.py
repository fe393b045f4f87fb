"""A Triton as what is loaded: requests are serialised once, and sent as they are, so that it alone is measured."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.client import CHANNEL_OPTIONS, DEFAULT_URL, error_of_status, token_headers
from dmsh_serving.contract import CODE, FILE, IMAGE, K
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.load.split import ModelCounts
from dmsh_serving.tls import ClientTls

__all__ = ["Content", "TritonTarget", "parse_target"]

Content = Sequence[bytes] | npt.NDArray[np.uint8] | None

_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_MOST_REQUESTS: Final = 256  # different ones, which are sent in turns
_MOST_BYTES: Final = 256 << 20
_RANDOM_ROWS: Final = 64


def parse_target(text: str, default_model: str) -> tuple[str, str]:
    """Return (host:port, model) of ``host:port``, ``host:port/model`` or ``triton://host:port/model``."""
    url, _, model = text.removeprefix("triton://").partition("/")
    host, _, port = url.rpartition(":")
    if not host or not port.isdecimal() or "/" in model:
        raise InputError(
            f"{text}: name a server as host:port or host:port/model, such as {DEFAULT_URL}/{default_model}"
        )
    return url, model or default_model


class TritonTarget:
    """The model ``model`` of the Triton at ``url``, asked with ``content`` in requests of ``batch``.

    Args:
        url: host:port of gRPC.
        model: one of ours: it takes ``image``, ``file`` or ``code``.
        content: image files; or images (N, H, W, 3) uint8; None makes images or codes of random numbers.
        batch: images per request.
        k: results per query, for a model that searches.
        timeout: seconds that a request may take.
        tls: the files for a server that speaks TLS.
        token: shown to a proxy that asks for one.

    Raises:
        MissingError: there is no server, or it does not serve ``model``.
        InputError: ``model`` takes something else than ``content``, or less at once than ``batch``.
    """

    def __init__(
        self,
        url: str,
        model: str,
        content: Content,
        *,
        batch: int,
        k: int,
        timeout: float,
        tls: ClientTls | None = None,
        token: str | None = None,
    ) -> None:
        try:
            import grpc
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError as error:
            raise MissingError("tritonclient is not installed: pip install 'dmsh-toolkit[client]'") from error
        self.url, self.model = url, model
        self._asking = {"timeout": timeout, "metadata": tuple(token_headers(token).items())}
        self._timeout = timeout
        self._errors = grpc.RpcError
        self._messages = service_pb2
        if tls is None:
            self._channel = grpc.insecure_channel(url, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(url, tls.credentials(), CHANNEL_OPTIONS)
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(_INFER)
        config = self._asked(
            lambda: self._server.ModelConfig(service_pb2.ModelConfigRequest(name=model), **self._asking).config
        )
        requests = _requests(config, content, batch, k)
        self.distinct_requests = len(requests)
        self._turns = itertools.cycle(requests)
        self._asked(lambda: self._infer(requests[0], **self._asking))  # a load of refusals measures nothing

    def __enter__(self) -> "TritonTarget":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self) -> str | None:
        """Send the next request and wait; return the gRPC status of one that failed."""
        try:
            self._infer(next(self._turns), **self._asking)
        except self._errors as error:
            return str(error.code().name)
        return None

    def start(self, done: Callable[[str | None], None]) -> None:
        """Send the next request without waiting; ``done`` gets the gRPC status of one that failed."""
        call = self._infer.future(next(self._turns), **self._asking)
        call.add_done_callback(lambda ended: done(None if ended.code().value[0] == 0 else ended.code().name))

    def counts(self) -> Mapping[str, ModelCounts]:
        """Return what each model of the server has done so far."""
        said = self._asked(
            lambda: self._server.ModelStatistics(self._messages.ModelStatisticsRequest(), **self._asking)
        )
        return {stats.name: _counts(stats) for stats in said.model_stats}

    def _asked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._errors as error:
            raise error_of_status(
                error.code().name,
                error.details(),
                self.url,
                self._timeout,
            ) from error


def _counts(stats: Any) -> ModelCounts:
    times = stats.inference_stats
    return ModelCounts(
        requests=times.success.count,
        rows=stats.inference_count,
        calls=stats.execution_count,
        total=times.success.ns,
        queue=times.queue.ns,
        compute_input=times.compute_input.ns,
        compute_infer=times.compute_infer.ns,
        compute_output=times.compute_output.ns,
    )


def _requests(config: Any, content: Content, batch: int, k: int) -> list[bytes]:
    """Return requests as they go over the wire, each of the next ``batch`` rows of ``content``, round and round."""
    if batch > max(1, config.max_batch_size):
        raise InputError(f"--batch {batch} is more than {config.name} takes, {config.max_batch_size}")
    rows = _rows(config, content)
    asks = {tensor.name for tensor in config.input}
    size = max(1, rows.array.nbytes // len(rows.array) if rows.kind != "BYTES" else max(map(len, rows.array)))
    count = max(1, min(_MOST_REQUESTS, len(rows.array), _MOST_BYTES // (size * batch)))
    return [
        _request(config.name, rows, np.arange(number * batch, (number + 1) * batch), k if K in asks else None)
        for number in range(count)
    ]


class _Rows:
    """What one input is filled with: its name, Triton's type, and one entry per row."""

    def __init__(self, name: str, kind: str, array: npt.NDArray[Any]) -> None:
        self.name, self.kind, self.array = name, kind, array


def _rows(config: Any, content: Content) -> _Rows:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in config.input}
    if FILE in shapes:
        if content is None or isinstance(content, np.ndarray):
            raise InputError(f"{config.name} takes image files: give --images FOLDER")
        files = np.empty(len(content), np.object_)
        files[:] = content
        return _Rows(FILE, "BYTES", files)
    name = next((name for name in (IMAGE, CODE) if name in shapes), None)
    if name is None:
        raise InputError(f"{config.name} takes none of {IMAGE}, {FILE} and {CODE}: it is no model of a search")
    if min(shapes[name], default=0) < 1:
        raise InputError(f"{config.name} takes {name} of shape {list(shapes[name])}: it is no model of a search")
    if content is None:
        if _RANDOM_ROWS * math.prod(shapes[name]) > _MOST_BYTES:
            raise InputError(f"{config.name} takes {name} of shape {list(shapes[name])}: give --images FILE.npy")
        random = np.random.default_rng(0).integers(0, 256, (_RANDOM_ROWS, *shapes[name]), np.uint8)
        return _Rows(name, "UINT8", random)
    if not isinstance(content, np.ndarray) or content.shape[1:] != shapes[name] or not len(content):
        raise InputError(f"{config.name} takes uint8 {list(shapes[name])}: give --images FILE.npy with such images")
    return _Rows(name, "UINT8", content)


def _request(model: str, rows: _Rows, numbers: npt.NDArray[np.int64], k: int | None) -> bytes:
    from tritonclient.grpc import service_pb2
    from tritonclient.utils import serialize_byte_tensor

    taken = rows.array[numbers % len(rows.array)]
    request = service_pb2.ModelInferRequest(model_name=model)
    if rows.kind == "BYTES":
        taken = taken[:, None]
        content = serialize_byte_tensor(taken).item()
    else:
        content = np.ascontiguousarray(taken).tobytes()
    request.inputs.add(name=rows.name, datatype=rows.kind, shape=list(taken.shape))
    request.raw_input_contents.append(content)
    if k is not None:
        request.inputs.add(name=K, datatype="INT64", shape=[len(numbers), 1])
        request.raw_input_contents.append(np.full(len(numbers), k, np.int64).tobytes())
    return bytes(request.SerializeToString())
