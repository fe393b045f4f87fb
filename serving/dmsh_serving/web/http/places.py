"""Places for what is in flight: each kind of work has some of its own, and who finds none is told to come again."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request

from dmsh_serving.web.http.abandoned import unless_abandoned
from dmsh_serving.web.http.problems import ProblemError

__all__ = ["Places"]

MOST_AT_ONCE: Final = {
    "searches": 64,
    "searches by file": 32,
    "ordered searches": 16,
    "searches by region": 8,
    "long searches": 4,
    "facets": 16,
    "pictures": 64,
    "views": 16,
    "rows": 64,
    "examinations": 8,
}


class Places:
    """Lets work begin while its kind has a place, and ends it after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.taken: Counter[str] = Counter()

    async def work(self, request: Request, work: Callable[[], Any], kind: str, seconds: float | None = None) -> Any:
        """Return what ``work`` returns, unless too many of its kind wait already or the client goes away.

        Raises:
            ProblemError: there are too many, or it takes too long.
            AbandonedError: the client went away.
        """
        if self.taken[kind] >= MOST_AT_ONCE[kind]:
            raise ProblemError(503, f"{MOST_AT_ONCE[kind]} {kind} are in flight already: try again")
        working = asyncio.ensure_future(work())
        self.taken[kind] += 1
        # Not with the request, whose work may still be in a thread.
        working.add_done_callback(lambda _: self.taken.subtract([kind]))
        try:
            async with asyncio.timeout(seconds or self._seconds):
                return await unless_abandoned(request, working)
        except TimeoutError:
            raise ProblemError(504, "the answer took too long") from None
        finally:
            del working  # see abandoned
