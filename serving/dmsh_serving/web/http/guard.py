"""Who may ask, and how much: the first thing that a request meets.

A page on another site must not be able to use this one through its visitor's browser:

- The ``Host`` must be an IP address, ``localhost``, this machine's name or one that the page was started with.
  A name of the attacker's that was made to resolve to this machine (DNS rebinding) is none of them.
- A browser says where a request comes from: ``Sec-Fetch-Site`` must be ``same-origin``, or ``none`` (typed by hand),
  and the ``Origin`` of a POST this page's own. Programs such as curl send neither.
- No cookie is ever set, so there is none to misuse.

A body is refused by its ``Content-Length`` before a byte is read, and counted while it is read. There is a limit for
all bodies together, too.
"""

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmsh_serving.web.http.problems import ProblemError, told

__all__ = ["Guard"]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=(), camera=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_SAFE = ("GET", "HEAD")
_BODIES: Final = 8  # of the greatest length are held at once, or more that are shorter
_SHORT: Final = 64 << 10  # bytes of each body that are not counted: searches by key go on while files fill the memory
_FULL: Final = "other requests fill the memory for bodies: try again"


class Guard:
    """Wraps the application: refuses what is not this page's business, and adds the headers that browsers obey.

    ``names`` are the host names that it is reached by, ``scheme`` is http or https, ``most_bytes`` bounds a body,
    and eight times that all bodies that are read or answered at the moment.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str], scheme: str, most_bytes: int) -> None:
        self._app, self._scheme, self._most_bytes = app, scheme, most_bytes
        self._names = {"localhost", *(name.lower() for name in names)}
        self._free = _BODIES * most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except ProblemError as problem:
            answer = told(problem)
            answer.headers["connection"] = "close"  # what is left of a body is not waited for
            await answer(scope, receive, send_guarded)
            return
        with self._counted(receive) as receive_counted:
            await self._app(scope, receive_counted, send_guarded)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        """Raise :class:`ProblemError` unless the request may be answered."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ProblemError(421, f"this page is not {host!r}: start it with --name if it should answer to that name")
        site = headers.get("sec-fetch-site", "none")
        # A link from elsewhere to a page may be followed; one to the API would make it work for a stranger.
        navigation = method in _SAFE and headers.get("sec-fetch-mode") == "navigate" and not path.startswith("/v1/")
        if site not in ("same-origin", "none") and not navigation:
            raise ProblemError(403, "a page of another site may not use this one")
        own = {f"{self._scheme}://{host}", f"https://{host}"}  # a proxy may speak TLS for a page that speaks none
        if method not in _SAFE and headers.get("origin", f"https://{host}") not in own:
            raise ProblemError(403, f"a page of {headers['origin']} may not use this one")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise ProblemError(400, "Content-Length is no number")
        if int(length) > self._most_bytes:
            raise ProblemError(413, f"the request has {int(length):,} bytes, at most {self._most_bytes:,} are taken")
        if int(length) - _SHORT > self._free:
            raise ProblemError(503, _FULL)

    def _is_ours(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        if name.startswith("["):
            name, _, port = name[1:].partition("]")
            if port and not port.startswith(":"):
                return False
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @contextlib.contextmanager
    def _counted(self, receive: Receive) -> Iterator[Receive]:
        """Yield ``receive`` with the limits of bodies: what a request has sent is counted until it is answered.

        The length is bounded here too, for a server that takes bodies in chunks.
        """
        read = held = 0

        async def receive_counted() -> Message:
            nonlocal read, held
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise ProblemError(413, f"the request is longer than {self._most_bytes:,} bytes")
            more = max(read - _SHORT, 0) - held
            if more > self._free:
                raise ProblemError(503, _FULL)
            held += more
            self._free -= more
            return message

        try:
            yield receive_counted
        finally:
            self._free += held
