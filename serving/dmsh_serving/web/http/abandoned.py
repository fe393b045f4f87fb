"""Work that ends when nobody waits for its answer any more; a thread cannot be ended, so it keeps what it was given."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

__all__ = ["AbandonedError"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class AbandonedError(Exception):
    """The client closed the connection before its answer was there."""


async def unless_abandoned(request: Request, work: Awaitable[T]) -> T:
    """Return what ``work`` returns, and cancel it when the client of ``request``, whose body was read, goes away.

    A work that is cancelled is not waited for: it may be in a thread, see :func:`in_thread`.

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
        working.add_done_callback(_forget)
        for each in (working, left):
            each.cancel()


async def in_thread(work: Callable[[*Ts], T], *given: *Ts, stop: threading.Event | None = None) -> T:
    """Return what ``work(*given)`` returns in a thread of Starlette's pool.

    If the caller is cancelled, ``stop`` is set, and a work that has not begun never does. One that has is waited for:
    the semaphores, locks and counters that the caller holds are held as long as the thread is busy.
    """
    stop, begun = stop or threading.Event(), threading.Event()

    def unless_stopped() -> T:
        begun.set()
        if stop.is_set():
            raise AbandonedError
        return work(*given)

    running = asyncio.ensure_future(run_in_threadpool(unless_stopped))
    running.add_done_callback(_forget)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        if not begun.is_set():
            running.cancel()  # a thread that begins just now sees stop
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        raise


def _forget(work: asyncio.Future[Any]) -> None:
    """Look at an error that nobody waits for: asyncio would log it."""
    if not work.cancelled():
        work.exception()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
