"""Work that ends when nobody waits for its answer any more; a thread cannot be ended, so it keeps what it was given.

Work that failed knows its error, which knows the frames that it came through. A frame that still knew the work would
keep all of them, and with them the body of a request, until Python looks for such circles, which is seldom.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, TypeVarTuple

from starlette.requests import Request

__all__ = ["AbandonedError", "in_thread", "to_the_end", "unless_abandoned"]

_THREADS: Final = ThreadPoolExecutor(40, "web")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class AbandonedError(Exception):
    """The client closed the connection before its answer was there."""


async def unless_abandoned(request: Request, work: Awaitable[T]) -> T:
    """Return what ``work`` returns, and cancel it when the client of ``request``, whose body was read, goes away.

    A work that is cancelled is waited for: what it holds of the request is counted until this returns. It may be in a
    thread, see :func:`in_thread`.

    Raises:
        AbandonedError: it did.
    """
    working = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        raise AbandonedError
    finally:
        working.add_done_callback(_forget)
        working.cancel()
        left.cancel()
        del work, working


async def in_thread(
    work: Callable[[*Ts], T],
    *given: *Ts,
    stop: threading.Event | None = None,
    threads: ThreadPoolExecutor = _THREADS,
) -> T:
    """Return what ``work(*given)`` returns in a thread of its own, of ``threads``.

    If the caller is cancelled, ``stop`` is set, and a work that has not begun never does. One that has is waited for:
    the semaphores, locks and counters that the caller holds are held as long as the thread is busy.
    """
    running = threads.submit(work, *given)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        if not running.cancel():
            await _over(asyncio.wrap_future(running))
        raise
    finally:
        del running


async def to_the_end(work: Awaitable[T]) -> T:
    """Return what ``work`` returns. If the caller is cancelled, it is waited for, as in :func:`in_thread`."""
    going_on = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(going_on)
    except asyncio.CancelledError:
        await _over(going_on)
        raise
    finally:
        del work, going_on


async def _over(work: asyncio.Future[Any]) -> None:
    """Wait until ``work`` is over, whoever cancels the caller meanwhile."""
    work.add_done_callback(_forget)
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work})


def _forget(work: asyncio.Future[Any]) -> None:
    """Look at an error that nobody waits for: asyncio would log it."""
    if not work.cancelled():
        work.exception()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
