"""What only the launcher may ask of its Triton: to drain the models. A key, which no client has, opens it."""

import contextlib
import http.client
import json
import logging
import secrets
import time
from typing import Final

from dmsh_serving.contract import SEARCH_FILE_MODEL, SEARCH_MODEL

__all__ = ["Control"]

# A client that could register shared memory could map and overwrite that of the models' processes.
_CLOSED_TO_CLIENTS: Final = "model-repository,shared-memory,logging,trace"
_HEADER: Final = "dmsh-control"
_log = logging.getLogger(__name__)


class Control:
    """The control of one start of a server, which listens on ``http_url`` (host:port).

    Each start has a key of its own: a port that a dead server leaves may become another's.
    """

    def __init__(self, http_url: str) -> None:
        self.key = secrets.token_hex(16)
        self._http_url = http_url

    def options(self) -> dict[str, str]:
        """Return by a name for each the options of tritonserver that the process list must not show."""
        closed = f"{_CLOSED_TO_CLIENTS}:{_HEADER}={self.key}"
        return {
            "DMSH_CLOSED_OVER_HTTP": f"--http-restricted-api={closed}",
            "DMSH_CLOSED_OVER_GRPC": f"--grpc-restricted-protocol={closed}",
        }

    def is_ready(self) -> bool:
        """Return whether the server says that it and all models are ready."""
        # Health needs no key, and is asked before Triton listens: another process may have taken the port.
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._ask("GET", "/v2/health/ready", {})
            return True
        return False

    def drain(self, seconds: float) -> None:
        """Refuse new searches, and let those in flight finish for at most ``seconds``.

        Triton told to stop refuses the next step of an ensemble's request, which then fails half done. An ensemble
        that is unloaded refuses new requests, while its own go through models that still work.
        """
        deadline = time.monotonic() + seconds
        try:
            for ensemble in self._served_ensembles():
                self._command(f"/v2/repository/models/{ensemble}/unload")
            while self._served_ensembles() and time.monotonic() < deadline:
                time.sleep(0.02)
        except (OSError, http.client.HTTPException) as error:  # it hangs or is gone: it is ended anyway
            _log.warning("Triton could not be drained before its end: %s", error)

    def _served_ensembles(self) -> list[str]:
        index = json.loads(self._command("/v2/repository/index"))
        living = ("READY", "UNLOADING")
        return [
            model["name"]
            for model in index
            if model["name"] in (SEARCH_MODEL, SEARCH_FILE_MODEL) and model.get("state") in living
        ]

    def _command(self, path: str) -> bytes:
        return self._ask("POST", path, {_HEADER: self.key})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        """Return the body of the answer; raise OSError or HTTPException unless it is 200 OK."""
        connection = http.client.HTTPConnection(self._http_url, timeout=2)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"{path}: {answer.status} {body[:200]!r}")
            return body
        finally:
            connection.close()
