"""What is asked, without the asking: steps that a blocking and an asyncio client go through alike.

A question is a generator. It yields what is to be done next (:class:`Infer`, :class:`Configuration`, :class:`Pause`),
is sent the result, or is thrown the ``InferenceServerException`` that it ended with, and returns the answer. So limits
of time, attempts and batches are here once, and each client says only how to wait.
"""

import operator
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from dmsh_serving.client.answers import Answer, CodeSpace, Tensor, code_space_of, joined, strings_of
from dmsh_serving.client.failures import error_of, is_of_a_batch_mate, is_unavailable
from dmsh_serving.client.retries import Retries
from dmsh_serving.codes import Encoded
from dmsh_serving.contract import (
    CODE,
    DEFAULT_GRPC_PORT,
    DISTANCES,
    ENCODER_MODEL,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    MAX_RESULTS,
    PAD_ID,
    RADIUS,
    RERANK,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
    K,
)
from dmsh_serving.errors import InputError, MissingError, UnavailableError

__all__ = [
    "CHANNEL_OPTIONS",
    "DEFAULT_TIMEOUT_SECONDS",
    "DEFAULT_URL",
    "Ids",
    "Infer",
    "Pause",
    "Questions",
    "Step",
    "Steps",
    "infer_arguments",
    "token_headers",
]

DEFAULT_URL: Final = f"127.0.0.1:{DEFAULT_GRPC_PORT}"
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
CHANNEL_OPTIONS: Final = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 1 << 29),  # 65,536 results with keys of 8 KB; what is packed may be far more
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # a server that was started again is found at once
    # gRPC sets TCP_USER_TIMEOUT so: if a machine or a balancer's entry is gone, nobody takes what is sent, and there is
    # a new connection after 20 s, not after a quarter of an hour. The other time, 25 days, keeps it from pinging, since
    # Triton ends the connection of a client that pings thrice in a long call.
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_time_ms", 2**31 - 2),
]
LONGEST_SECONDS: Final = 86_400  # that a request is given; gRPC takes far more for none at all
MOST_REQUEST_BYTES: Final = 64 << 20  # of a request of several rows; a proxy may refuse more
_FOUND: Final = (IDS, DISTANCES, KEYS, GALLERY_VERSION, CODE)
_FOR_MATES: Final = Retries(10, 0.005, 0.05)  # half the batches may hold a damaged request

Ids = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True)
class Infer:
    """Send one request to ``model`` within ``seconds``; its result is {output: array}.

    The server's log names ``request`` where it tells of this request.
    """

    model: str
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    seconds: float
    request: str = ""


@dataclass(frozen=True)
class Configuration:
    """Ask for the configuration of ``model`` within ``seconds``; its result is a ``ModelConfig``."""

    model: str
    seconds: float


@dataclass(frozen=True)
class Pause:
    """Wait ``seconds``."""

    seconds: float


Step = Infer | Configuration | Pause
_T = TypeVar("_T")
Steps = Generator[Step, Any, _T]


class _Time:
    """The time that one call may take, its batches and attempts together; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float) -> float:
        """Return what is left of it, at most ``most`` seconds; 0 or less if nothing is."""
        return most if self._end is None else min(most, self._end - time.monotonic())


class Questions:
    """The questions to the Triton at ``url``; each request is given ``timeout`` seconds."""

    def __init__(self, url: str, timeout: float, retries: Retries) -> None:
        if not 0 < timeout <= LONGEST_SECONDS:
            raise InputError(f"timeout = {timeout}: a request has more than 0 and up to {LONGEST_SECONDS:,} seconds")
        self.url, self.timeout, self.retries = url, timeout, retries
        self.last_request = ""
        self._configs: dict[str, Any] = {}

    def search(
        self,
        model: str,
        source: str,
        data: Tensor,
        k: int,
        radius: int | None,
        allowed: Ids | None,
        rerank: str | None,
        deadline: float | None,
    ) -> Steps[Answer]:
        """Ask for the nearest images of each row of ``data``, which is the input ``source`` of ``model``."""
        inputs = {source: data, K: _for_each(len(data), "k", k)}
        if radius is not None:
            inputs[RADIUS] = _for_each(len(data), "radius", radius)
        if allowed is not None:
            inputs[FILTER] = np.broadcast_to(_filter(allowed), (len(data), max(1, len(allowed))))
        if rerank is not None:
            inputs[RERANK] = np.full((len(data), 1), rerank.encode(), dtype=np.object_)
        most = max(1, MAX_RESULTS // max(1, int(k)))  # whether k is good, the server says
        found = yield from self._all(model, inputs, _FOUND, deadline, most)
        return Answer(
            ids=found[IDS],
            distances=found[DISTANCES],
            keys=strings_of(found[KEYS]),
            gallery_version=strings_of(found[GALLERY_VERSION])[:, 0],
            code=found[CODE],
        )

    def encode(self, images: Tensor, model: str, deadline: float | None) -> Steps[Encoded]:
        """Ask the encoder ``model`` for the codes and logits of ``images``."""
        found = yield from self._all(model, {IMAGE: images}, (CODE, LOGITS), deadline)
        return Encoded(found[CODE], found[LOGITS])

    def ask(
        self, model: str, inputs: dict[str, Tensor], outputs: Sequence[str], deadline: float | None
    ) -> Steps[dict[str, Tensor]]:
        """Ask any model with one request."""
        found: dict[str, Tensor] = yield from self._attempts(_Time(deadline), Infer(model, inputs, outputs, 0))
        return found

    def code_space(self, model: str) -> Steps[CodeSpace]:
        """Ask for what the configuration of an encoder says of its codes, each time: the server may have changed it."""
        return code_space_of((yield from self._attempts(_Time(None), Configuration(model, 0))), self.url)

    def parameters(self, model: str) -> Steps[dict[str, str]]:
        """Ask for the parameters in the configuration of ``model``."""
        config = yield from self._config(model, _Time(None))
        return {name: value.string_value for name, value in config.parameters.items()}

    def max_batch(self, model: str) -> Steps[int]:
        """Ask for the most rows that ``model`` takes in one request."""
        return (yield from self._max_batch(model, _Time(None)))

    def _all(
        self,
        model: str,
        inputs: dict[str, Tensor],
        outputs: Sequence[str],
        deadline: float | None,
        most: int | None = None,
    ) -> Steps[dict[str, Tensor]]:
        """Ask in batches as large as the server takes, or of ``most``, and put their answers together in order.

        A batch of more than one row has at most ``MOST_REQUEST_BYTES``.
        """
        if not len(next(iter(inputs.values()))):
            raise InputError(f"{model}: there is nothing to ask, 0 images were given")
        limit = _Time(deadline)
        size = yield from self._max_batch(model, limit)
        size = size if most is None else min(size, most)
        batches = list(_batches(inputs, size))
        several = len(batches) > 1
        before = (yield from self._fingerprint(model, limit)) if several else ""
        parts = []
        for part in batches:
            answer = yield from self._attempts(limit, Infer(model, part, outputs, 0))
            parts.append(answer)
        if several and (yield from self._fingerprint(model, limit)) != before:
            raise UnavailableError(f"the Triton at {self.url} began to serve another model meanwhile: ask again")
        return joined(parts, outputs, self.url)

    def _fingerprint(self, model: str, limit: _Time) -> Steps[str]:
        """Ask for what names the code space that ``model`` works in; "" if its configuration does not say it."""
        encoder = ENCODER_MODEL if model in (SEARCH_MODEL, SEARCH_FILE_MODEL) else model
        config = yield from self._attempts(limit, Configuration(encoder, 0))
        return str(config.parameters["fingerprint"].string_value) if "fingerprint" in config.parameters else ""

    def _max_batch(self, model: str, limit: _Time) -> Steps[int]:
        return max(1, int((yield from self._config(model, limit)).max_batch_size))

    def _config(self, model: str, limit: _Time) -> Steps[Any]:
        if model not in self._configs:
            self._configs[model] = yield from self._attempts(limit, Configuration(model, 0))
        return self._configs[model]

    def _attempts(self, limit: _Time, step: Infer | Configuration) -> Steps[Any]:
        """Do ``step``, again if the server was unavailable, in the time that is left."""
        from tritonclient.utils import InferenceServerException

        pauses, pauses_for_mates = self.retries.pauses(), _FOR_MATES.pauses()
        while True:
            seconds = limit.left(self.timeout)
            if seconds <= 0:
                raise MissingError(f"the Triton at {self.url} did not answer within {limit.seconds:g} s")
            attempt = _within(step, seconds)
            if isinstance(attempt, Infer):
                self.last_request = attempt.request
            try:
                return (yield attempt)
            except InferenceServerException as error:
                self._configs.clear()  # what answers now may serve another model, or take smaller batches
                if is_of_a_batch_mate(error):
                    pause = next(pauses_for_mates, None)
                else:
                    pause = next(pauses, None) if is_unavailable(error) else None
                if pause is None or limit.left(self.timeout) <= pause:
                    raise error_of(error, self.url, seconds) from error
            yield Pause(pause)


def token_headers(token: str | None) -> dict[str, str]:
    """Return the headers that show ``token`` to a proxy."""
    return {} if token is None else {"authorization": f"Bearer {token}"}


def infer_arguments(step: Infer) -> dict[str, Any]:
    """Return the arguments of ``infer``, of either of the clients that tritonclient has for gRPC."""
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.utils import np_to_triton_dtype

    sent = []
    for name, array in step.inputs.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        sent.append(tensor.set_data_from_numpy(array))
    return {
        "model_name": step.model,
        "inputs": sent,
        "outputs": [InferRequestedOutput(name) for name in step.outputs],
        "request_id": step.request,
        "client_timeout": step.seconds,
        # Told to the server too, whose queues, if they have limits, drop what nobody waits for any more: an ensemble of
        # Triton 24.10 hands this time on to its steps, but not that the call was cancelled.
        "timeout": max(1, int(step.seconds * 1e6)),
    }


def _within(step: Infer | Configuration, seconds: float) -> Step:
    if isinstance(step, Infer):
        return Infer(step.model, step.inputs, step.outputs, seconds, secrets.token_hex(8))
    return Configuration(step.model, seconds)


def _batches(inputs: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    row_bytes = np.sum([_row_bytes(array) for array in inputs.values()], axis=0)
    start = 0
    while start < len(row_bytes):
        fitting = int(np.searchsorted(np.cumsum(row_bytes[start : start + size]), MOST_REQUEST_BYTES, side="right"))
        stop = start + max(1, fitting)
        yield {name: array[start:stop] for name, array in inputs.items()}
        start = stop


def _row_bytes(array: Tensor) -> npt.NDArray[np.int64]:
    if array.dtype == np.object_:
        return np.array([sum(map(len, row)) for row in array.reshape(len(array), -1)], np.int64)
    return np.full(len(array), array[:1].nbytes, np.int64)


def _for_each(count: int, name: str, value: int) -> npt.NDArray[np.int64]:
    """Return ``value`` for each of ``count`` images, (count, 1); what it may be, the server says."""
    try:
        return np.full((count, 1), operator.index(value), dtype=np.int64)
    except TypeError:
        raise InputError(f"{name} = {value!r} is no whole number") from None
    except OverflowError:
        raise InputError(f"{name} = {value} is out of range: it is sent as an int64") from None


def _filter(allowed: Ids) -> npt.NDArray[np.int64]:
    """Return the ids of a filter, (F,) int64, F at least 1: without ids one padding id, which lets nothing through."""
    given = np.asarray(allowed)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"allowed must be ids, whole numbers [F], got {given.dtype} {list(given.shape)}")
    if given.size and (given.min() < 0 or given.max() > np.iinfo(np.int64).max):
        raise InputError(f"allowed holds ids from {given.min()} to {given.max()}: ids are 0 or more, and int64")
    return given.astype(np.int64) if given.size else np.array([PAD_ID])
