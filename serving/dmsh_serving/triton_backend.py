"""Between Triton's Python backend and the services: settings, tensors to arrays and back, errors, metrics."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmsh_serving.errors import InputError
from dmsh_serving.services import Answer, Arrays, Settings


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
    """Answer Triton's requests with ``answer``; an :class:`InputError` becomes that request's INVALID_ARGUMENT."""
    return [_response(found) for found in answer([_arrays(request) for request in requests])]


def failed_swap_counter() -> Callable[[], None]:
    """Return what counts one refused gallery version in the server's metrics."""
    import triton_python_backend_utils as pb_utils

    family = pb_utils.MetricFamily(
        name="dmsh_gallery_failed_swaps_total",
        description="New gallery versions that could not be used, so the old one went on serving",
        kind=pb_utils.MetricFamily.COUNTER,
    )
    metric = family.Metric(labels={})

    def count(family: Any = family) -> None:  # the family must live as long as its metric
        metric.increment(1)

    return count


def _arrays(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _response(answer: Answer) -> Any:
    import triton_python_backend_utils as pb_utils

    if isinstance(answer, InputError):
        error = pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
