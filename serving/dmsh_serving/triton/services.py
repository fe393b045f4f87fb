"""What the three Triton models do with a batch of requests: plain arrays in and out, no Triton.

The requests of one call are computed together. A wrong request gets an error of its own, and the others get their
answers. The number of rows of a call is bounded by Triton (``max_batch_size``).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from dmsh_serving.checks import check_images
from dmsh_serving.clickhouse.address import Address, is_address
from dmsh_serving.codes import checked_bits, require_finite
from dmsh_serving.contract import (
    CODE,
    DEFAULT_K,
    DISTANCES,
    FILE,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    MODEL_FILE,
    RADIUS,
    RERANK,
    K,
)
from dmsh_serving.encoder.base import RUNTIMES, Encoder, Runtime
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.images.known_answer import check_decoder
from dmsh_serving.ranker.asks import Ask, Ranked
from dmsh_serving.ranker.follower import Ranker, RankerEvents
from dmsh_serving.ranker.rerank import ASYMMETRIC
from dmsh_serving.triton.served_config import gallery_folder

__all__ = [
    "DECODE_SECONDS",
    "SHARED_SECONDS",
    "Answer",
    "Arrays",
    "DecodeService",
    "EncoderService",
    "RankerService",
    "Settings",
    "ask_of",
]

Arrays = Mapping[str, npt.NDArray[Any]]
Answer = Arrays | InputError | MissingError
_Decoded = npt.NDArray[np.uint8] | InputError | MissingError | None
_Checked = TypeVar("_Checked")  # a request that was found good
_Refusal = TypeVar("_Refusal", bound=InputError | MissingError)
DECODE_SECONDS: Final = 10.0  # of a batch: the launcher takes a server that finishes none for 15 s as hanging
SHARED_SECONDS: Final = 2.0  # of a file that is not decoded alone


@dataclass(frozen=True)
class Settings:
    """What a model is told by its place and its ``config.pbtxt``: its folder, its version's folder, its parameters."""

    folder: Path
    version_folder: Path
    parameters: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return the parameter ``name``."""
        if name not in self.parameters:
            raise InputError(f"{self.folder / 'config.pbtxt'} has no parameter {name}: generate the repository again")
        return self.parameters[name]

    def number(self, name: str) -> int:
        """Return the parameter ``name``, a whole number above 0."""
        text = self.text(name)
        if not text.isascii() or not text.isdigit() or not int(text):
            raise InputError(f"{self.folder / 'config.pbtxt'}: {name} must be a whole number above 0, got {text!r}")
        return int(text)


class DecodeService:
    """``file`` BYTES (N, 1) -> ``image`` (N, image_size, image_size, 3) uint8; files are decoded side by side."""

    def __init__(self, image_size: int, framing: Framing, threads: int) -> None:
        self.image_size = image_size
        self.framing = framing
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._decoders = Decoders(threads)

    @classmethod
    def open(cls, settings: Settings) -> "DecodeService":
        """Start the service that ``settings`` describe; raise CheckError if Pillow makes other pixels."""
        check_decoder()
        framing = Framing.parse(settings.text("framing"))
        service = cls(settings.number("image_size"), framing, settings.number("threads"))
        service._decoders.start()
        return service

    def close(self) -> None:
        """Stop the threads, and the processes in which they decode."""
        self._pool.shutdown(cancel_futures=True)
        self._decoders.close()

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer each request with its images, or with the error of a bad file, within ``DECODE_SECONDS``.

        The first file of every request is decoded, then the second of every request, and so on, so that a request of
        many files does not hold the others back. Nor does one of slow files: unless it is the only one, a file has
        ``SHARED_SECONDS``. A request whose files are not decoded in time gets an UnavailableError, unless it was alone;
        MissingError if a process that decodes does not start.
        """
        until = time.monotonic() + DECODE_SECONDS
        failed: set[int] = set()  # requests; their other files are not decoded

        def decoded(turn: tuple[int, int]) -> _Decoded:
            index, number = turn
            if number in failed:
                return None
            file = bytes(requests[number][FILE].flat[index])
            end = until if len(turns) == 1 else min(until, time.monotonic() + SHARED_SECONDS)
            try:
                return self._decoders.image(file, self.image_size, self.framing, name="file", until=end)
            except (InputError, MissingError) as error:
                failed.add(number)
                return _as_answer(error)

        counts = [request[FILE].size for request in requests]
        turns = sorted((index, number) for number, count in enumerate(counts) for index in range(count))
        found = dict(zip(turns, self._pool.map(decoded, turns), strict=True))
        return [
            self._reply([found[index, number] for index in range(count)], alone=len(requests) == 1)
            for number, count in enumerate(counts)
        ]

    def _reply(self, images: Sequence[_Decoded], *, alone: bool) -> Answer:
        for index, image in enumerate(images):
            if isinstance(image, InputError):
                return image if len(images) == 1 else InputError(f"file {index} of the request: {image}")
        for image in images:
            if isinstance(image, UnavailableError) and alone:
                return InputError("its files took too long to decode: send fewer at once, or smaller images")
            if isinstance(image, MissingError):
                return image
        return {IMAGE: np.stack([image for image in images if isinstance(image, np.ndarray)])}


class EncoderService:
    """``image`` (N, H, W, 3) uint8 -> ``code`` (N, B) uint8 and ``logits`` (N, K) float32."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @classmethod
    def open(cls, settings: Settings) -> "EncoderService":
        """Load ``model.onnx`` beside ``model.py``; refuse one of another code space than the configuration's."""
        path = settings.version_folder / MODEL_FILE
        encoder = open_encoder(
            path, _runtime(settings), threads=settings.number("threads"), streams=settings.number("streams")
        )
        for name, found in (("fingerprint", encoder.fingerprint), ("bits", str(encoder.bits))):
            if found != settings.text(name):
                raise InputError(
                    f"{path} has {name} {found}, config.pbtxt says {settings.text(name)}: generate the repository again"
                )
        return cls(encoder)

    def close(self) -> None:
        """Free the session."""
        self._encoder.close()

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer each request with its codes and logits; NaN or Inf in a logit is that request's error."""
        return answer_together(requests, self._checked_images, self._codes)

    def _checked_images(self, request: Arrays) -> npt.NDArray[np.uint8]:
        images = request[IMAGE]
        check_images(images, self._encoder.image_size)
        return images.astype(np.uint8, copy=False)

    def _codes(self, parts: Sequence[npt.NDArray[np.uint8]]) -> list[Answer]:
        encoded = self._encoder.infer(np.concatenate(parts))
        return [_codes_or_error(encoded.code[start:stop], encoded.logits[start:stop]) for start, stop in _spans(parts)]


def _runtime(settings: Settings) -> Runtime:
    text = settings.text("runtime")
    for name in RUNTIMES:
        if name == text:
            return name
    raise InputError(f"{settings.folder / 'config.pbtxt'}: runtime must be one of {', '.join(RUNTIMES)}, got {text!r}")


class RankerService:
    """``code`` (N, B) uint8 -> ids, distances, keys (N, k), gallery_version (N, 1).

    Optionally ``k`` and ``radius`` (N, 1) int64, ``filter`` (N, F) int64, and ``rerank`` BYTES (N, 1) with ``logits``
    (N, K) float32. Triton gives every input of a batching model one row per query. A request has one k, one radius and
    one rerank method, so their rows must agree; it has one filter per query.
    """

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker

    @classmethod
    def open(cls, settings: Settings, events: RankerEvents | None = None) -> "RankerService":
        """Open the gallery that ``settings`` name, by a path as seen from the model's folder or an address."""
        named = settings.text("gallery")
        remote = is_address(named)
        ranker = Ranker(
            Address.parse(named) if remote else gallery_folder(settings.folder, os.fsdecode(named.encode())),
            bits=checked_bits(settings.number("bits")),
            fingerprint=settings.text("fingerprint"),
            threads=None if remote else settings.number("threads"),  # of this machine
            events=events,
        )
        return cls(ranker)

    def close(self) -> None:
        """Stop following the gallery."""
        self._ranker.close()

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer each request with its k nearest images; all that can share a scan of the gallery do."""
        return answer_together(requests, self._checked_ask, self._replies)

    def _checked_ask(self, request: Arrays) -> Ask:
        ask = ask_of(request)
        ask.check(self._ranker.bits)
        return ask

    def _replies(self, asks: Sequence[Ask]) -> list[Answer]:
        return [_reply(ranked) for ranked in self._ranker.rank(asks)]


def ask_of(request: Arrays) -> Ask:
    """Return what a request to the ranker asks.

    Raises:
        InputError: no code, a k or radius that is not one whole number, an unknown rerank method, or a NaN or infinite
            logit: the ensembles pass all logits on, and not every encoder checks its own.
    """
    if CODE not in request:
        raise InputError(f"the request has no input {CODE}")
    if LOGITS in request:
        require_finite(request[LOGITS])
    k = _one_number(request, K)
    return Ask(
        request[CODE],
        DEFAULT_K if k is None else k,
        _one_number(request, RADIUS),
        request.get(FILTER),
        request[LOGITS] if _reranks(request) else None,
    )


def _one_number(request: Arrays, name: str) -> int | None:
    """Return the one value of an optional input, int64 (N, 1); None if the request does not have it."""
    if name not in request:
        return None
    values = request[name]
    if values.dtype != np.int64 or values.size == 0 or (values != values.flat[0]).any():
        raise InputError(f"{name} must be one int64 value, the same in every row of a request, got {values.tolist()}")
    return int(values.flat[0])


def _reranks(request: Arrays) -> bool:
    """Say whether the request wants its answers ordered by its logits, which an ensemble always hands on."""
    if RERANK not in request:
        return False
    ways = set(request[RERANK].ravel().tolist())
    if ways != {ASYMMETRIC.encode()}:
        raise InputError(f"{RERANK} must be {ASYMMETRIC!r} in every row of a request")
    if LOGITS not in request:
        raise InputError(f"{RERANK} needs the input {LOGITS}: the ensembles pass the encoder's on")
    return True


def _reply(ranked: Ranked) -> Answer:
    version = np.full((len(ranked.ids), 1), ranked.gallery_version, dtype=np.object_)
    return {IDS: ranked.ids, DISTANCES: ranked.distances, KEYS: ranked.keys, GALLERY_VERSION: version}


def answer_together(
    requests: Sequence[Arrays],
    checked: Callable[[Arrays], _Checked],
    compute: Callable[[Sequence[_Checked]], list[Answer]],
) -> list[Answer]:
    """Check each request alone, compute the good ones in one call, and return all answers in the requests' order."""
    answers: list[Answer | None] = []
    good: list[_Checked] = []
    for request in requests:
        try:
            good.append(checked(request))
            answers.append(None)
        except InputError as error:
            answers.append(_as_answer(error))
    computed = iter(compute(good) if good else [])
    return [next(computed) if answer is None else answer for answer in answers]


def _codes_or_error(code: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> Answer:
    try:
        require_finite(logits)
    except InputError as error:
        return _as_answer(error)
    return {CODE: code, LOGITS: logits}


def _as_answer(error: _Refusal) -> _Refusal:
    """Return ``error`` without the frames that it came through, which would keep the request in memory for long.

    They lead to those that called them, of which one holds the answer: a circle, for which Python looks seldom.
    """
    error.__traceback__ = None
    return error


def _spans(parts: Sequence[npt.NDArray[np.uint8]]) -> list[tuple[int, int]]:
    stops = np.cumsum([len(part) for part in parts])
    return [(int(stop) - len(part), int(stop)) for part, stop in zip(parts, stops, strict=True)]
