"""The bodies of all requests together are bounded, over an application that holds them until it is told to answer."""

import asyncio

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from dmsh_serving.web.http.guard import Guard
from dmsh_serving.web.http.problems import ProblemError, handle

MOST = 1 << 20
SHORT = 64 << 10


class Held:
    """An application that reads bodies, and answers once ``go`` is set."""

    def __init__(self):
        self.go, self.read = asyncio.Event(), 0
        guard = Middleware(Guard, names=(), scheme="http", most_bytes=MOST)
        route = Route("/", self.answer, methods=["POST"])
        self.app = Starlette(routes=[route], middleware=[guard], exception_handlers={ProblemError: handle})

    async def answer(self, request):
        await request.body()
        self.read += 1
        await self.go.wait()
        return Response("ok")

    async def post(self, length, stated=True):
        """Send so many bytes; return the status, the value of Retry-After and how many bytes were taken."""
        taken, told = 0, {}

        async def receive():
            nonlocal taken
            part = min(SHORT, length - taken)
            taken += part
            return {"type": "http.request", "body": bytes(part), "more_body": taken < length}

        async def send(message):
            told.update(message)

        headers = [(b"host", b"localhost"), *([(b"content-length", str(length).encode())] if stated else [])]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        await self.app(scope, receive, send)
        return told["status"], dict(told["headers"]).get(b"retry-after"), taken


def test_bodies_beyond_the_memory_for_them_are_refused_until_others_are_answered():
    async def asked():
        held = Held()
        full = [asyncio.ensure_future(held.post(MOST)) for _ in range(8)]
        async with asyncio.timeout(60):
            while held.read < 8:
                await asyncio.sleep(0)
            assert await held.post(MOST) == (503, b"2", 0)
            status, again, taken = await held.post(MOST, stated=False)
            assert (status, again) == (503, b"2")
            assert taken < MOST
            short = asyncio.ensure_future(held.post(SHORT))
            while held.read < 9:
                await asyncio.sleep(0)
            held.go.set()
            assert {status for status, *_ in await asyncio.gather(*full, short)} == {200}
            assert {status for status, *_ in await asyncio.gather(*(held.post(MOST) for _ in range(8)))} == {200}

    asyncio.run(asked())


def test_what_is_refused_takes_no_memory_from_others():
    async def asked():
        held = Held()
        held.go.set()
        for _ in range(20):
            assert (await held.post(MOST + 1, stated=False))[0] == 413
        assert (await held.post(MOST))[0] == 200

    asyncio.run(asked())
