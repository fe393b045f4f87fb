"""An HTTP server as what is loaded, by the same loops as a Triton."""

import http.client
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

__all__ = ["HttpSender"]

_THREADS: Final = 64


class HttpSender:
    """Posts files to ``path`` of ``host:port`` in turns, each thread on a connection of its own that stays open."""

    def __init__(self, address: str, path: str, files: Sequence[bytes], timeout: float) -> None:
        self._address, self._path, self._timeout = address, path, timeout
        self._turns = itertools.cycle(files)
        self._mine = threading.local()
        self._pool = ThreadPoolExecutor(_THREADS)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def call(self) -> str | None:
        """Post the next file and wait; return the status, or the kind of error, of a request that failed."""
        try:
            connection = self._connection()
            connection.request("POST", self._path, next(self._turns))
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._mine.connection = None
            return type(error).__name__
        return None if answer.status == http.HTTPStatus.OK else str(answer.status)

    def start(self, done: Callable[[str | None], None]) -> None:
        """Post the next file in another thread; ``done`` is told of its end."""
        self._pool.submit(lambda: done(self.call()))

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = self._mine.connection = http.client.HTTPConnection(self._address, timeout=self._timeout)
        return found
