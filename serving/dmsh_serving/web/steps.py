"""What the page asks of Triton: a search of a file in one call, or its three steps one by one.

File -> image -> code and logits -> nearest images: asked one by one, each step can be timed, and the logits are there
to be shown. In one call Triton hands on the results itself, which is faster. One gRPC channel serves all requests. A
call whose task is cancelled goes on at Triton, and the task waits for it.
"""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.client import AsyncSearchClient, CodeSpace, Retries, Tensor, strings_of
from dmsh_serving.codes import Codes, Encoded
from dmsh_serving.contract import (
    CODE,
    DECODE_MODEL,
    DISTANCES,
    FILE,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    PAD_ID,
    RADIUS,
    RANKER_MODEL,
    SEARCH_FILE_MODEL,
    K,
)
from dmsh_serving.tls import ClientTls
from dmsh_serving.web.http.abandoned import to_the_end

__all__ = ["Nearest", "TritonSteps"]

_SPACE_SECONDS: Final = 1.0
_FOUND: Final = [IDS, DISTANCES, KEYS, GALLERY_VERSION]


@dataclass(frozen=True)
class Nearest:
    """The images nearest to one code, in (distance, id) order, without padding.

    Attributes:
        ids: (M,) int64.
        distances: (M,) int32.
        keys: M strings.
        version: the version of the gallery that answered.
    """

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int32]
    keys: list[str]
    version: str


class TritonSteps:
    """A connection to the Triton at ``url`` (host:port of gRPC), to be made and used inside one event loop.

    Raises:
        InputError: Triton refuses the request.
        MissingError: no Triton there, or no answer within ``timeout`` seconds.
    """

    def __init__(self, url: str, timeout: float, tls: ClientTls | None = None, token: str | None = None) -> None:
        # Who waits at a page tries again.
        self._client = AsyncSearchClient(url, timeout=timeout, retries=Retries(0), tls=tls, token=token)
        self._space: CodeSpace | None = None
        self._asked_at = 0.0

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def code_space(self, *, anew: bool = False) -> CodeSpace:
        """Return what the served encoder says of its codes: another model may be served at any moment.

        Unless it is asked ``anew``, it is what the encoder said when it was asked a second ago at most.
        """
        asked_at = time.monotonic()
        if self._space is not None and not anew and asked_at <= self._asked_at + _SPACE_SECONDS:
            return self._space
        space = await self._client.code_space()
        if asked_at >= self._asked_at:  # an answer may come after that to a later request
            self._space, self._asked_at = space, asked_at
        return space

    async def is_ready(self) -> bool:
        """Say whether Triton answers, and every model of the search is ready."""
        return await self._client.is_ready(RANKER_MODEL)

    async def decode(self, file: bytes) -> npt.NDArray[np.uint8]:
        """Return the image (1, H, W, 3) uint8 that the encoder is given for an image file."""
        data = np.array([[file]], dtype=np.object_)
        found = await to_the_end(self._client.ask(DECODE_MODEL, {FILE: data}, [IMAGE]))
        image: npt.NDArray[np.uint8] = found[IMAGE]
        return image

    async def encode(self, image: npt.NDArray[np.uint8]) -> Encoded:
        """Return the code (1, B) and the logits (1, K) of an image (1, H, W, 3) uint8."""
        return await to_the_end(self._client.encode(image))

    async def rank(self, code: Codes, k: int, *, radius: int | None, ids: npt.NDArray[np.int64] | None) -> Nearest:
        """Return the ``k`` nearest images of ``code`` (1, B): within ``radius``, and among ``ids``, if given."""
        inputs = {CODE: code, **_asked_of_ranker(k, radius, ids)}
        return _nearest(await to_the_end(self._client.ask(RANKER_MODEL, inputs, _FOUND)))

    async def search(
        self, file: bytes, k: int, *, radius: int | None, ids: npt.NDArray[np.int64] | None
    ) -> tuple[Codes, Nearest]:
        """Return the code (1, B) of an image file, and its nearest images as :meth:`rank` does, in one call."""
        inputs = {FILE: np.array([[file]], dtype=np.object_), **_asked_of_ranker(k, radius, ids)}
        found = await to_the_end(self._client.ask(SEARCH_FILE_MODEL, inputs, [CODE, *_FOUND]))
        return found[CODE], _nearest(found)


def _asked_of_ranker(k: int, radius: int | None, ids: npt.NDArray[np.int64] | None) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {K: np.array([[k]])}
    if radius is not None:
        inputs[RADIUS] = np.array([[radius]])
    if ids is not None:
        inputs[FILTER] = ids[None] if len(ids) else np.array([[PAD_ID]])
    return inputs


def _nearest(found: dict[str, Tensor]) -> Nearest:
    there = int((found[IDS][0] != PAD_ID).sum())
    return Nearest(
        found[IDS][0, :there],
        found[DISTANCES][0, :there],
        strings_of(found[KEYS][0, :there]).tolist(),
        str(strings_of(found[GALLERY_VERSION])[0, 0]),
    )
