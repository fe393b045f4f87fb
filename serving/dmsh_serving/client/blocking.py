"""The client whose calls wait for their answers."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dmsh_serving.client.answers import Answer, CodeSpace, arrays_of
from dmsh_serving.client.files import rows_of_files
from dmsh_serving.client.questions import (
    CHANNEL_OPTIONS,
    DEFAULT_TIMEOUT_SECONDS,
    DEFAULT_URL,
    Ids,
    Infer,
    Pause,
    Questions,
    Step,
    Steps,
    infer_arguments,
    token_headers,
)
from dmsh_serving.client.retries import Retries
from dmsh_serving.codes import Encoded
from dmsh_serving.contract import DEFAULT_K, ENCODER_MODEL, FILE, IMAGE, SEARCH_FILE_MODEL, SEARCH_MODEL
from dmsh_serving.errors import MissingError
from dmsh_serving.tls import ClientTls

__all__ = ["SearchClient"]

_T = TypeVar("_T")


class SearchClient:
    """A connection to the Triton at ``url`` (host:port of gRPC).

    Any number of images may be given: they are sent in batches of the server's ``max_batch_size``, smaller ones for a
    large ``k`` (``contract.MAX_RESULTS``) or over 64 MiB, and the answers come in the images' order.

    Args:
        url: host:port.
        timeout: seconds that each request may take; the server is told: its queues, if they have limits,
            drop what nobody waits for any more.
        retries: how often, and how much later, a request is sent again if the server is not available.
        tls: the files for a server that speaks TLS.
        token: shown to a proxy that asks for one.

    Raises:
        InputError: the server refuses the request; its message says what it expected.
        MissingError: there is no server, it lacks these models, or it gives no answer in time.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retries: Retries = Retries(),
        tls: ClientTls | None = None,
        token: str | None = None,
    ) -> None:
        try:
            import tritonclient.grpc as triton
        except ImportError as error:
            raise MissingError("tritonclient is not installed: pip install 'dmsh-toolkit[client]'") from error
        self._questions = Questions(url, timeout, retries)
        channel = {} if tls is None else tls.channel()
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS, **channel)
        self._headers = token_headers(token)

    def __enter__(self) -> "SearchClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def last_request(self) -> str:
        """The id of the newest request; the server's log names it where it tells of that request."""
        return self._questions.last_request

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def search(
        self,
        images: npt.NDArray[np.uint8],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        rerank: str | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each of ``images`` (N, H, W, 3) uint8, RGB.

        Args:
            images: the queries.
            k: results per query; if there are fewer, the rest is padding.
            radius: only images at most this many bits away; more than ``k`` of them are cut at ``k``.
            allowed: only images with these ids; ids that the gallery does not have do not matter.
            rerank: "asymmetric" orders those at equal distance by the query's logits, not by id; see
                :mod:`dmsh_serving.ranker.rerank`.
            deadline: seconds that the whole call may take, with all its requests and attempts; None is no limit.
        """
        asked = self._questions.search(SEARCH_MODEL, IMAGE, images, k, radius, allowed, rerank, deadline)
        return self._done(asked)

    def search_files(
        self,
        files: Sequence[bytes | Path],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        rerank: str | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each image file, given as bytes or path; see :meth:`search`."""
        rows = rows_of_files(files)
        asked = self._questions.search(SEARCH_FILE_MODEL, FILE, rows, k, radius, allowed, rerank, deadline)
        return self._done(asked)

    def encode(
        self, images: npt.NDArray[np.uint8], *, model: str = ENCODER_MODEL, deadline: float | None = None
    ) -> Encoded:
        """Return the codes (N, B) uint8 and logits (N, K) float32 of ``images`` (N, H, W, 3) uint8, RGB."""
        return self._done(self._questions.encode(images, model, deadline))

    def code_space(self, model: str = ENCODER_MODEL) -> CodeSpace:
        """Return what the configuration of an encoder says of its codes.

        Raises:
            InputError: ``model`` is no encoder of ours.
        """
        return self._done(self._questions.code_space(model))

    def parameters(self, model: str) -> dict[str, str]:
        """Return the parameters in the configuration of ``model``."""
        return self._done(self._questions.parameters(model))

    def max_batch(self, model: str) -> int:
        """Return the most rows ``model`` takes in one request."""
        return self._done(self._questions.max_batch(model))

    def _done(self, steps: Steps[_T]) -> _T:
        """Go through ``steps`` and return what they come to."""
        from tritonclient.utils import InferenceServerException

        try:
            step = next(steps)
            while True:
                try:
                    result = self._do(step)
                except InferenceServerException as error:  # no other name: it knows this frame, and all that was sent
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _do(self, step: Step) -> Any:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Infer):
            answer = self._client.infer(**infer_arguments(step), headers=self._headers)
            rows = len(next(iter(step.inputs.values())))
            return arrays_of(answer, step.outputs, rows, self._questions.url)
        return self._client.get_model_config(step.model, headers=self._headers, client_timeout=step.seconds).config
