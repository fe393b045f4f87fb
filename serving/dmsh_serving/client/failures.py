"""What to tell a person whose call of a Triton failed."""

import re
from typing import Any, Final

from dmsh_serving.errors import DmshError, InputError, MissingError, UnavailableError

__all__ = ["error_of", "error_of_status", "is_of_a_batch_mate", "is_unavailable"]

# The Python backend of Triton 24.10 takes a whole batch at once, and answers all of it with the error of a request
# whose texts are damaged, or whose batch is larger than it says. Those of this client never are.
_OF_A_BATCH_MATE: Final = re.compile(
    "incomplete string data|unexpected number of string elements|batch size [0-9]+ for '.*', max allowed is"
)
_TOLD_AS: Final = ("INVALID_ARGUMENT", "INTERNAL")
_OF_A_REQUEST: Final = re.compile(r"^\[request id: [^]]*\] ")


def _status_of(error: Any) -> str:
    """Return the name of the gRPC status of an ``InferenceServerException``."""
    return str(error.status()).removeprefix("StatusCode.")


def is_unavailable(error: Any) -> bool:
    """Say whether the server could not take the request."""
    return _status_of(error) == "UNAVAILABLE"


def is_of_a_batch_mate(error: Any) -> bool:
    """Say whether the request was refused for another one in its batch."""
    return _status_of(error) in _TOLD_AS and _OF_A_BATCH_MATE.search(str(error.message())) is not None


def error_of(error: Any, url: str, timeout: float) -> DmshError:
    """Return what to tell a person whose call of the Triton at ``url`` raised an ``InferenceServerException``."""
    return error_of_status(_status_of(error), str(error.message()), url, timeout)


def error_of_status(status: str, message: str, url: str, timeout: float) -> DmshError:
    """Return what to tell a person whose call of the Triton at ``url`` ended with a gRPC status and its message."""
    match status:
        case status if status in _TOLD_AS and _OF_A_BATCH_MATE.search(message):
            return UnavailableError(f"the Triton at {url} refused a batch for another client's request: try again")
        case "INVALID_ARGUMENT":
            # Triton's own prefix and its advice about configurations do not help a caller.
            return InputError(_OF_A_REQUEST.sub("", message).split(" NOTE: ")[0])
        case "RESOURCE_EXHAUSTED" if "Sent message larger" in message:
            return InputError("the request is longer than gRPC sends: ask for less at once")
        case "UNKNOWN" if "status: 413" in message:
            return InputError(f"the request is longer than the proxy at {url} takes: ask for less at once")
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
        case "UNAVAILABLE" if "busy decoding" in message:
            return MissingError(f"the Triton at {url} is too busy: it decodes other images, try again later")
        case other:
            return MissingError(f"the Triton at {url} failed ({other}): {message}")
