"""Between Triton's Python backend and the services: settings, tensors to arrays and back, errors, metrics."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmsh_serving.errors import InputError, UnavailableError
from dmsh_serving.ranker.asks import Version
from dmsh_serving.ranker.follower import RankerEvents
from dmsh_serving.triton.services import Answer, Arrays, Settings

__all__ = ["RankerMetrics", "respond", "settings_from"]

_log = logging.getLogger(__name__)


def settings_from(args: dict[str, str]) -> Settings:
    """Read what Triton hands to a model's ``initialize``; from here on its log goes to the server's."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parameters = json.loads(args["model_config"]).get("parameters", {})
    folder = Path(args["model_repository"])
    return Settings(
        folder=folder,
        version_folder=folder / args["model_version"],
        parameters={name: value["string_value"] for name, value in parameters.items()},
    )


def respond(requests: Sequence[Any], answer: Callable[[Sequence[Arrays]], list[Answer]]) -> list[Any]:
    """Answer Triton's requests with ``answer``; an :class:`InputError` becomes that request's INVALID_ARGUMENT.

    An :class:`UnavailableError` is UNAVAILABLE for all of them: what they need does not answer.

    Whatever else goes wrong is written to the log, and is INTERNAL for the requests that cause it. The client is not
    told more: an exception's text may hold paths.
    """
    read = [_arrays_or_error(request) for request in requests]
    good = [arrays for arrays in read if not isinstance(arrays, InputError)]
    answers = iter(_answers_or_errors(good, answer))
    return [_response(arrays if isinstance(arrays, InputError) else next(answers)) for arrays in read]


class RankerMetrics(RankerEvents):
    """Puts what a ranker tells into the server's metrics; the families must live as long as their metrics.

    Changing a metric asks Triton's process and waits for it, which took as long as ranking a small gallery. So
    queries are counted here, and handed on at each ``report``.
    """

    def __init__(self) -> None:
        import triton_python_backend_utils as pb_utils

        def metric(name: str, description: str, kind: str) -> Any:
            family = pb_utils.MetricFamily(
                name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind)
            )
            self._families.append(family)
            return family.Metric(labels={})

        self._lock = threading.Lock()
        self._counted = (0, 0.0)
        self._current: bool | None = None
        self._families: list[Any] = []
        self._codes = metric("dmsh_gallery_codes", "Codes in the gallery version that serves", "GAUGE")
        self._version = metric(
            "dmsh_gallery_version_number", "Counter that the name of the serving gallery version begins with", "GAUGE"
        )
        self._swaps = metric("dmsh_gallery_swaps_total", "New gallery versions that were swapped in", "COUNTER")
        self._refused = metric(
            "dmsh_gallery_failed_swaps_total",
            "New gallery versions that could not be used, so the old one went on serving",
            "COUNTER",
        )
        self._followed = metric(
            "dmsh_gallery_current",
            "1 if the version that CURRENT names serves, 0 if that one cannot be used and an older one serves",
            "GAUGE",
        )
        self._queries = metric("dmsh_rank_queries_total", "Queries ranked", "COUNTER")
        self._seconds = metric("dmsh_rank_seconds_total", "Seconds spent ranking", "COUNTER")

    def serving(self, snapshot: Version, swapped: bool) -> None:
        """Note the version that serves."""
        self._codes.set(snapshot.count)
        self._version.set(int(snapshot.version[:8]))
        if swapped:
            self._swaps.increment(1)

    def refused(self) -> None:
        """Count a version that could not be used."""
        self._refused.increment(1)

    def following(self, current: bool) -> None:
        """Note whether the version that serves is the one that should."""
        if current != self._current:
            self._current = current
            self._followed.set(int(current))

    def ranked(self, queries: int, seconds: float) -> None:
        """Count queries and the time that they took."""
        with self._lock:
            self._counted = (self._counted[0] + queries, self._counted[1] + seconds)

    def report(self) -> None:
        """Hand on what was counted since the last time."""
        with self._lock:
            (queries, seconds), self._counted = self._counted, (0, 0.0)
        if queries:
            self._seconds.increment(seconds)  # first, so that where queries are seen their seconds are
            self._queries.increment(queries)


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
    requests: Sequence[Arrays], answer: Callable[[Sequence[Arrays]], list[Answer]]
) -> list[Answer | UnavailableError | None]:
    """Return the answers, None for each request that fails even alone."""
    try:
        return list(answer(requests)) if requests else []
    except UnavailableError as error:
        _log.error("%s", error)
        return [error] * len(requests)
    except Exception:
        if len(requests) > 1:  # the fault may be in one of them: the others are answered
            return [found for request in requests for found in _answers_or_errors([request], answer)]
        _log.exception("a request failed")
        return [None]


def _response(answer: Answer | UnavailableError | None) -> Any:
    import triton_python_backend_utils as pb_utils

    if answer is None:
        error = pb_utils.TritonError(
            "the server failed on this request; its log says why", pb_utils.TritonError.INTERNAL
        )
        return pb_utils.InferenceResponse(error=error)
    if isinstance(answer, UnavailableError):
        error = pb_utils.TritonError(
            "the gallery's database does not answer: try again", pb_utils.TritonError.UNAVAILABLE
        )
        return pb_utils.InferenceResponse(error=error)
    if isinstance(answer, InputError):
        error = pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
