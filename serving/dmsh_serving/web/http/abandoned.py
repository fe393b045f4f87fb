"""Work that ends when nobody waits for its answer any more."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

__all__ = ["AbandonedError"]

T = TypeVar("T")


class AbandonedError(Exception):
    """The client closed the connection before its answer was there."""


async def unless_abandoned(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns, and cancel it when the client of ``request``, whose body was read, goes away.

    Raises:
        AbandonedError: it did.
    """
    working = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise AbandonedError
    finally:
        for each in (working, left):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
