"""The client for asyncio."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dmsh_serving.client.answers import Answer, CodeSpace, Tensor, arrays_of
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

__all__ = ["AsyncSearchClient"]

_T = TypeVar("_T")


class AsyncSearchClient:
    """What :class:`~dmsh_serving.client.blocking.SearchClient` is, for asyncio: made and used inside one event loop.

    One connection carries any number of calls at once. A call whose task is cancelled goes on at the server until it is
    answered or its ``timeout`` is over.

    Arguments and errors are those of :class:`~dmsh_serving.client.blocking.SearchClient`.
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
            import tritonclient.grpc.aio as triton
        except ImportError as error:
            raise MissingError("tritonclient is not installed: pip install 'dmsh-toolkit[client]'") from error
        self._questions = Questions(url, timeout, retries)
        channel = {} if tls is None else tls.channel()
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS, **channel)
        self._headers = token_headers(token)
        self._going_on: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> "AsyncSearchClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, once the calls that go on are answered."""
        if self._going_on:
            await asyncio.wait(self._going_on)
        await self._client.close()

    async def search(
        self,
        images: npt.NDArray[np.uint8],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        rerank: str | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each of ``images`` (N, H, W, 3) uint8, RGB."""
        asked = self._questions.search(SEARCH_MODEL, IMAGE, images, k, radius, allowed, rerank, deadline)
        return await self._done(asked)

    async def search_files(
        self,
        files: Sequence[bytes | Path],
        k: int = DEFAULT_K,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        rerank: str | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Return the ``k`` nearest gallery images of each image file, given as bytes or path."""
        rows = await asyncio.to_thread(rows_of_files, files)
        asked = self._questions.search(SEARCH_FILE_MODEL, FILE, rows, k, radius, allowed, rerank, deadline)
        return await self._done(asked)

    async def encode(
        self, images: npt.NDArray[np.uint8], *, model: str = ENCODER_MODEL, deadline: float | None = None
    ) -> Encoded:
        """Return the codes (N, B) uint8 and logits (N, K) float32 of ``images`` (N, H, W, 3) uint8, RGB."""
        return await self._done(self._questions.encode(images, model, deadline))

    async def code_space(self, model: str = ENCODER_MODEL) -> CodeSpace:
        """Return what the configuration of an encoder says of its codes.

        Raises:
            InputError: ``model`` is no encoder of ours.
        """
        return await self._done(self._questions.code_space(model))

    async def parameters(self, model: str) -> dict[str, str]:
        """Return the parameters in the configuration of ``model``."""
        return await self._done(self._questions.parameters(model))

    async def max_batch(self, model: str) -> int:
        """Return the most rows ``model`` takes in one request."""
        return await self._done(self._questions.max_batch(model))

    async def ask(
        self, model: str, inputs: dict[str, Tensor], outputs: Sequence[str], *, deadline: float | None = None
    ) -> dict[str, Tensor]:
        """Ask any model of the server with one request: {input: array} -> {output: array}."""
        return await self._done(self._questions.ask(model, inputs, outputs, deadline))

    async def is_ready(self, model: str) -> bool:
        """Say whether the server answers, and ``model`` is ready."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(
                await self._client.is_model_ready(model, headers=self._headers, client_timeout=self._questions.timeout)
            )
        except InferenceServerException:
            return False

    async def _done(self, steps: Steps[_T]) -> _T:
        """Go through ``steps`` and return what they come to."""
        from tritonclient.utils import InferenceServerException

        try:
            step = next(steps)
            while True:
                try:
                    result = await self._do(step)
                except InferenceServerException as error:  # no other name: it knows this frame, and all that was sent
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _inferred(self, step: Infer) -> Any:
        # One in some hundred calls that are cancelled while they are answered ends Triton 24.10.
        going_on = asyncio.ensure_future(self._client.infer(**infer_arguments(step), headers=self._headers))
        self._going_on.add(going_on)
        going_on.add_done_callback(self._ended)
        try:
            return await asyncio.shield(going_on)
        finally:
            del going_on  # it knows its error, which knows this frame

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._going_on.discard(call)
        if not call.cancelled():
            call.exception()  # asyncio would log one that nobody waits for

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, Infer):
            answer = await self._inferred(step)
            rows = len(next(iter(step.inputs.values())))
            return arrays_of(answer, step.outputs, rows, self._questions.url)
        found = await self._client.get_model_config(step.model, headers=self._headers, client_timeout=step.seconds)
        return found.config
