"""How long a connection may wait for its client, and how many there may be.

uvicorn bounds neither: connections that never end a request, or never read its answer, would take all descriptors of
the process, which ``dmsh-serve start --web`` shares with the watch over Triton.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection"]

HEAD_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 60.0  # the longest has some MB
MOST_CONNECTIONS: Final = 500  # half of the 1,024 descriptors of a process; with TLS, each counts after its handshake


class Connection(H11Protocol):
    """A connection of uvicorn that is closed if it is one too many, sends no whole head or takes no answer in time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head, self._answer = _Clock(), _Clock()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._head.start(self.loop, HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._head.stop()
        self._answer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start a clock at the first byte of what nobody answers yet, and stop it when the head of a request is whole.

        Such a byte is of a head, or of a body whose request was answered before.
        """
        if self.transport.get_write_buffer_size() == 0:
            self._answer.stop()
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._head.start(self.loop, HEAD_SECONDS, self.transport.abort)
        else:
            self._head.stop()

    def on_response_complete(self) -> None:
        """Start a clock for the client to take what the system did not take at once."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > 0:
            self._answer.start(self.loop, ANSWER_SECONDS, self._end_unread)

    def _end_unread(self) -> None:
        self._answer.stop()
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()


class _Clock:
    """Calls something, unless it is stopped before."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        """Begin, unless it runs already."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
