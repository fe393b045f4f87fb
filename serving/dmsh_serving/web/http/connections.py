"""How long a connection may wait for its client, how many there may be, and what their unread answers may hold.

uvicorn bounds none of it: connections that never end a request, or never read its answer, would take all descriptors of
the process, or its memory, which ``dmsh-serve start --web`` shares with the watch over Triton. Nor does it bound what
its parser does in one go: each header and each chunk of a body takes microseconds in the one loop that answers
everybody.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection"]

HEAD_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 60.0  # the longest has some MB
MOST_UNREAD: Final = 128 << 20  # bytes of answers that are not taken yet, together
MOST_CONNECTIONS: Final = 500  # half of the 1,024 descriptors of a process; with TLS, each counts after its handshake
_GRACE_SECONDS: Final = 1.0  # before a connection is judged by what it sends
LONGEST_HEAD: Final = 16 << 10  # bytes; a key may be long
_NO_LENGTH: Final = "A body is taken with its Content-Length alone, not in chunks."


class Connection(H11Protocol):
    """A connection of uvicorn that is closed if it sends no whole head or takes no answer in time.

    If there are too many, the one is closed that the server waits for and that sends least. If the answers that are not
    taken yet are too long, the one is closed that takes least.

    A request whose head is too long, or whose body comes in chunks, is answered with 400. A head of at most
    ``LONGEST_HEAD`` is taken, one of over twice as much never.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = self._requests = _Requests(h11.SERVER, LONGEST_HEAD)
        self._head, self._answer = _Clock(), _Clock()
        self._waits_since, self._got = 0.0, 0  # bytes of what the server waits for
        self._unread_at, self._unread = 0.0, 0  # when an answer was whole, and what the system did not take at once
        self._is_going = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._head.start(self.loop, HEAD_SECONDS, transport.abort)
        if len(self.connections) > MOST_CONNECTIONS:
            # Not the new one, whose request is on its way: connections that ask nothing would take all places.
            own = [each for each in self.connections if isinstance(each, Connection) and not each._is_going]
            slowest = min(own, key=Connection._promise)
            slowest._is_going = True  # it is gone in the next turn of the loop
            slowest.transport.abort()

    def _promise(self) -> tuple[int, float, float]:
        """Return what is least for the connection that others wait for in vain.

        A head that trickles in must not outlast an upload, which pauses for as long as a packet is under way.
        """
        if self._is_at_work:
            return 2, 0.0, 0.0
        waited = self.loop.time() - self._waits_since
        if waited < _GRACE_SECONDS or self.transport.get_write_buffer_size() > 0:
            return 1, 0.0, self._waits_since
        return 0, self._got / waited, self._waits_since

    @property
    def _is_at_work(self) -> bool:
        """Whether the server owes the client one answer: a request is whole, and its answer not.

        A client that sends its next requests meanwhile, as no browser does, is not waited for.
        """
        cycle = self.cycle
        waits_for_client = cycle is None or cycle.response_complete or cycle.more_body
        sends_ahead = bool(self._requests.trailing_data[0])
        return not (waits_for_client or sends_ahead) and self.transport.get_write_buffer_size() == 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._head.stop()
        self._answer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start a clock at the first byte of what nobody answers yet, and stop it when the head of a request is whole.

        Such a byte is of a head, or of a body whose request was answered before.
        """
        if not self._got:
            self._waits_since = self.loop.time()
        self._got += len(data)
        if self.transport.get_write_buffer_size() == 0:
            self._answer.stop()
        # The parser refuses what is too long only if it is not whole yet: it gets less at a time than asyncio reads.
        for start in range(0, len(data), LONGEST_HEAD):
            if not self.transport.is_closing():
                super().data_received(data[start : start + LONGEST_HEAD])
            # Nor does it look while the request before has no answer yet: what comes then is kept, whole or not.
            if len(self._requests.trailing_data[0]) > LONGEST_HEAD:
                self.transport.abort()
        if self.cycle is None or self.cycle.response_complete:
            self._head.start(self.loop, HEAD_SECONDS, self.transport.abort)
        else:
            self._head.stop()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one without a length."""
        super().send_400_response(_NO_LENGTH if self._requests.is_chunked else msg)

    def on_response_complete(self) -> None:
        """Start a clock for the client to take what the system did not take at once."""
        self._waits_since, self._got = self.loop.time(), 0
        super().on_response_complete()
        self._unread = self.transport.get_write_buffer_size()
        if self._unread > 0:
            self._unread_at = self.loop.time()
            self._answer.start(self.loop, ANSWER_SECONDS, self._end_unread)
            self._bound_unread()

    def _bound_unread(self) -> None:
        """Close those that take their answers slowest while all answers that are not taken yet are too long."""
        own = [each for each in self.connections if isinstance(each, Connection) and each._answer.is_running]
        slow = [each for each in own if each.transport.get_write_buffer_size() > 0]
        slow.sort(key=Connection._taking)
        unread = sum(each.transport.get_write_buffer_size() for each in slow)
        for each in slow[:-1]:  # one answer may be longer than all may be
            if unread <= MOST_UNREAD:
                return
            unread -= each.transport.get_write_buffer_size()
            each._is_going = True
            each.transport.abort()

    def _taking(self) -> tuple[float, float]:
        """Return the bytes a second that the client takes of its answer, and since when: of equals the oldest goes."""
        waited = max(self.loop.time() - self._unread_at, 1e-3)
        return (self._unread - self.transport.get_write_buffer_size()) / waited, self._unread_at

    def _end_unread(self) -> None:
        self._answer.stop()
        if self.transport.get_write_buffer_size() > 0:
            self.transport.abort()


class _Requests(h11.Connection):
    """Reads requests, and none whose body comes in chunks: each of them could be one byte."""

    is_chunked = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request) and any(name == b"transfer-encoding" for name, _ in event.headers):
            self.is_chunked = True
            raise h11.RemoteProtocolError(_NO_LENGTH)
        return event


class _Clock:
    """Calls something, unless it is stopped before."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._timer is not None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        """Begin, unless it runs already."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
