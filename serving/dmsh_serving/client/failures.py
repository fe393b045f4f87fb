"""What to tell a person whose call of a Triton failed."""

import re
from typing import Any, Final

from dmsh_serving.errors import DmshError, InputError, MissingError

__all__ = ["error_of", "error_of_status", "status_of"]

_OF_A_REQUEST: Final = re.compile(r"^\[request id: [^]]*\] ")


def status_of(error: Any) -> str:
    """Return the name of the gRPC status of an ``InferenceServerException``."""
    return str(error.status()).removeprefix("StatusCode.")


def error_of(error: Any, url: str, timeout: float) -> DmshError:
    """Return what to tell a person whose call of the Triton at ``url`` raised an ``InferenceServerException``."""
    return error_of_status(status_of(error), str(error.message()), url, timeout)


def error_of_status(status: str, message: str, url: str, timeout: float) -> DmshError:
    """Return what to tell a person whose call of the Triton at ``url`` ended with a gRPC status and its message."""
    match status:
        case "INVALID_ARGUMENT":
            # Triton's own prefix and its advice about configurations do not help a caller.
            return InputError(_OF_A_REQUEST.sub("", message).split(" NOTE: ")[0])
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
