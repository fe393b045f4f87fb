"""Run the page: in the foreground, or beside something else in a thread."""

import asyncio
import logging
import socket
import threading
from types import FrameType, TracebackType

import uvicorn

from dmsh_serving.errors import MissingError
from dmsh_serving.web.app import Web
from dmsh_serving.web.http.connections import Connection
from dmsh_serving.web.settings import WebSettings

__all__ = ["WebServer"]

_STOP_SECONDS = 5
_HANDSHAKE_SECONDS = 10.0  # of TLS


# It warns of every form that it cannot read; the client is told, too.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _is_news(record: logging.LogRecord) -> bool:
    """Say whether uvicorn's record is more than that a request did not end before the page did."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


logging.getLogger("uvicorn.error").addFilter(_is_news)


class WebServer:
    """One page: ``with WebServer(settings) as page: ... page.url``.

    Raises:
        InputError: the images or the gallery cannot be used.
        MissingError: the port is taken.
    """

    def __init__(self, settings: WebSettings) -> None:
        self.settings = settings
        self._socket = _listening(settings.host, settings.port)
        try:
            self._server = _Server(
                uvicorn.Config(
                    Web(settings).app(),
                    ssl_certfile=settings.tls_cert,
                    ssl_keyfile=settings.tls_key,
                    access_log=False,
                    log_level="error",  # it warns of every request that is no HTTP, in the loop that answers everybody
                    server_header=False,
                    proxy_headers=False,
                    ws="none",
                    backlog=128,
                    timeout_graceful_shutdown=_STOP_SECONDS,
                    http=Connection,  # over h11: httptools, which uvicorn prefers, has no limit of a request's head
                )
            )
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self.run, name="web", daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{self.settings.scheme}://{host}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Answer until it is told to stop: by :meth:`stop`, or in the main thread by Ctrl-C or SIGTERM."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Stop; the requests in flight have 5 s to be answered."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(2 * _STOP_SECONDS)
        self._socket.close()

    def __enter__(self) -> "WebServer":
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        if not self._server.started:
            raise MissingError("the page could not be started")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """Bounds the handshake of TLS, ends without an error when it is told to, and leaves no connection open.

    uvicorn would wait a minute for a handshake, and raise the signal again. On a connection that was accepted in its
    last moment, a browser would wait for ever.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        for listening in sockets or []:
            server = await loop.create_server(
                lambda: Connection(self.config, self.server_state, self.lifespan.state),
                sock=listening,
                backlog=self.config.backlog,
                ssl=self.config.ssl,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if self.config.ssl else None,
            )
            self.servers.append(server)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # at the second signal, nothing is waited for
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # they are closed in the next turn of the loop


def _listening(host: str, port: int) -> socket.socket:
    opened = None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio sets TCP_NODELAY on what it accepts: else an answer waits 40 ms for an ACK.
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(128)
    except OSError as error:
        if opened is not None:
            opened.close()
        why = error.strerror or error
        raise MissingError(f"cannot listen on {host}:{port}: {why}; choose another --port") from None
    return opened
