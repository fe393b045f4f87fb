"""Errors as ``application/problem+json`` (RFC 9457): what is wrong, where, and what to do."""

import http
import json

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dmsh_serving.errors import DmshError, InputError, MissingError

__all__ = ["MOST_LETTERS", "ProblemError", "handle", "told"]

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
MOST_LETTERS = 1000  # what was sent may be repeated in it


class ProblemError(Exception):
    """Ends a request with the HTTP status ``status``; ``detail`` is one line for a person."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def problem_of(error: Exception) -> ProblemError:
    """Return what to tell of ``error``: an unforeseen one tells nothing of this program's inside."""
    match error:
        case ProblemError():
            return error
        case InputError():
            return ProblemError(400, str(error))
        case MissingError() if "did not answer within" in str(error):
            return ProblemError(504, str(error))
        case MissingError():
            return ProblemError(503, str(error))
        case DmshError():
            return ProblemError(500, str(error))
        case HTTPException():
            return ProblemError(error.status_code, error.detail)
        case _:
            return ProblemError(500, "a fault of this program: its log has the details")


def told(problem: ProblemError) -> Response:
    """Return the answer that tells ``problem``."""
    title = http.HTTPStatus(problem.status).phrase
    body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail[:MOST_LETTERS]}
    headers = {"cache-control": "no-store"}
    if problem.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_SECONDS)
    return Response(json.dumps(body), problem.status, headers, MEDIA_TYPE)


async def handle(request: Request, error: Exception) -> Response:
    """Answer a request that ended with ``error``; a handler of Starlette's."""
    return told(problem_of(error))
