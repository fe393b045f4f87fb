"""Between Triton's Python backend and the services: settings, tensors to arrays and back, errors, the log."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.triton.metrics import SLOW_SECONDS, SLOW_SECONDS_VARIABLE, ModelMetrics, RankerMetrics
from dmsh_serving.triton.services import Answer, Arrays, DecodeService, EncoderService, RankerService, Settings

__all__ = ["open_decoder", "open_encoder", "open_ranker", "respond"]

_LONGEST_ID: Final = 128  # of what is written of a request's id
_LONGEST_ERROR: Final = 1000  # Triton copies it several times, and gRPC carries 8 KiB
_log = logging.getLogger(__name__)


class Service(Protocol):
    """Answers requests, each with its tensors or its own error."""

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer all of them together."""

    def close(self) -> None:
        """Let go of threads and memory."""


class Model:
    """A service behind Triton's Python backend: what ``model.py`` opens, asks and closes."""

    def __init__(self, service: Service, metrics: ModelMetrics) -> None:
        self._service, self._metrics = service, metrics
        self._slow_seconds = float(os.environ.get(SLOW_SECONDS_VARIABLE, SLOW_SECONDS))

    def respond(self, requests: Sequence[Any]) -> list[Any]:
        """Answer Triton's requests: see :func:`respond`. Those that take long are logged, by their ids."""
        start = time.perf_counter()
        answers = respond(requests, self._service.answer, self._metrics.request_refused)
        seconds = time.perf_counter() - start
        self._metrics.answered(len(requests), seconds)
        if seconds > self._slow_seconds:
            for request in requests:
                _log.warning("request %s was slow: %s took %.3f s", _id_of(request), self._metrics.step, seconds)
        return answers

    def close(self) -> None:
        """Let go of threads and memory."""
        self._service.close()
        self._metrics.close()


def open_decoder(args: dict[str, str]) -> Model:
    """Open the model dmsh_decode, of which Triton says ``args``."""
    return _opened(DecodeService.open(settings_from(args)), ModelMetrics("decode"))


def open_encoder(args: dict[str, str]) -> Model:
    """Open the model dmsh_encoder, of which Triton says ``args``."""
    return _opened(EncoderService.open(settings_from(args)), ModelMetrics("encode"))


def open_ranker(args: dict[str, str]) -> Model:
    """Open the model dmsh_ranker, of which Triton says ``args``."""
    metrics = RankerMetrics()
    return Model(RankerService.open(settings_from(args), metrics), metrics)


def _opened(service: Service, metrics: ModelMetrics) -> Model:
    metrics.start()
    return Model(service, metrics)


def settings_from(args: dict[str, str]) -> Settings:
    """Read what Triton hands to a model's ``initialize``; from here on its log goes to the server's."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )  # fmt: skip
    logging.Formatter.converter = time.gmtime
    parameters = json.loads(args["model_config"]).get("parameters", {})
    # A stub's Python takes ASCII for the encoding of file names: their bytes pass as they are.
    folder = Path(os.fsdecode(args["model_repository"].encode()))
    return Settings(
        folder=folder,
        version_folder=folder / args["model_version"],
        parameters={name: value["string_value"] for name, value in parameters.items()},
    )


def respond(
    requests: Sequence[Any],
    answer: Callable[[Sequence[Arrays]], list[Answer]],
    on_refusal: Callable[[str], None] = lambda reason: None,
) -> list[Any]:
    """Answer Triton's requests with ``answer``; an :class:`InputError` becomes that request's INVALID_ARGUMENT.

    An :class:`UnavailableError` that ``answer`` returns is that request's UNAVAILABLE, in its words. If ``answer``
    raises one, all of them are UNAVAILABLE: the gallery's database does not answer.

    Whatever else goes wrong is written to the log, and is INTERNAL for the requests that cause it; so is a
    :class:`MissingError`. The client is not told more: an exception's text may hold paths. ``on_refusal`` is told the
    reason of each that is refused.
    """
    read = [_arrays_or_error(request) for request in requests]
    good = [
        (_id_of(request), arrays)
        for request, arrays in zip(requests, read, strict=True)
        if not isinstance(arrays, InputError)
    ]
    answers = iter(_answers_or_errors(good, answer))
    responses = []
    for arrays in read:
        found = arrays if isinstance(arrays, InputError) else next(answers)
        reason = "unreadable" if isinstance(arrays, InputError) else _reason_of(found)
        if reason is not None:
            on_refusal(reason)
        responses.append(_response(found))
    return responses


def _arrays_or_error(request: Any) -> Arrays | InputError:
    arrays = {}
    for tensor in request.inputs():
        try:
            arrays[tensor.name()] = tensor.as_numpy()
        except Exception:  # of several kinds, all from bytes that do not say what they should
            return InputError(f"{tensor.name()} cannot be read: its bytes do not agree with its shape and type")
        if len(arrays[tensor.name()]) == 0:
            return InputError(f"{tensor.name()} has no rows: send one at least")
    return arrays


def _answers_or_errors(
    requests: Sequence[tuple[str, Arrays]], answer: Callable[[Sequence[Arrays]], list[Answer]]
) -> list[Answer | None]:
    """Return the answers to requests, each with its id; None for each that fails even alone."""
    try:
        answers: list[Answer | None] = list(answer([arrays for _, arrays in requests])) if requests else []
    except UnavailableError as error:
        _log.error("%s", error)
        return [UnavailableError("the gallery's database does not answer: try again")] * len(requests)
    except Exception:
        if len(requests) > 1:  # the fault may be in one of them: the others are answered
            return [found for request in requests for found in _answers_or_errors([request], answer)]
        _log.exception("request %s failed", requests[0][0])
        return [None]
    for (request_id, _), found in zip(requests, answers, strict=True):
        if _reason_of(found) == "internal":
            _log.error("request %s failed: %s", request_id, found)
    return answers


def _reason_of(answer: Answer | None) -> str | None:
    """Return why a request is refused, one of the reasons of the metrics; None for a good answer."""
    match answer:
        case UnavailableError():
            return "unavailable"
        case InputError():
            return "invalid"
        case None | MissingError():
            return "internal"
    return None


def _id_of(request: Any) -> str:
    """Return a request's id as the log may show it: one short word, whatever a client sent."""
    try:
        given = request.request_id()
    except UnicodeDecodeError:
        return "with an id that is no text"
    return quote(given[:_LONGEST_ID], safe="/:@+=,;")[:_LONGEST_ID] or "without an id"


def _response(answer: Answer | None) -> Any:
    import triton_python_backend_utils as pb_utils

    match answer:
        case UnavailableError():
            error = pb_utils.TritonError(str(answer)[:_LONGEST_ERROR], pb_utils.TritonError.UNAVAILABLE)
        case InputError():
            error = pb_utils.TritonError(str(answer)[:_LONGEST_ERROR], pb_utils.TritonError.INVALID_ARG)
        case None | MissingError():
            text = "the server failed on this request; its log says why"
            error = pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL)
        case arrays:
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
    return pb_utils.InferenceResponse(error=error)
