"""When a request that a server could not take is sent again, and how long later; `questions.py` sends it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from dmsh_serving.errors import InputError

__all__ = ["Retries"]


@dataclass(frozen=True)
class Retries:
    """Up to ``most`` further attempts if the server was UNAVAILABLE: not there, its queue full, or busy decoding.

    A request whose batch was refused for another client's request costs the server nothing, and is sent again up to 10
    times within a moment, whatever is said here.

    No other failure would go away: a request that is refused as wrong stays wrong, and one that took too long would
    take as long again. A search changes nothing, so one that was half done may be done again.

    The pause before attempt n + 1 is drawn from 0 to ``first_seconds`` * 2^n, at most ``most_seconds``: clients that
    were refused together do not come back together ("full jitter", M. Brooker,
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """

    most: int = 2
    first_seconds: float = 0.05
    most_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no number of attempts and no time."""
        if self.most < 0 or self.first_seconds < 0 or self.most_seconds < 0:
            raise InputError(f"{self}: give numbers of 0 or more")

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each further attempt."""
        for attempt in range(self.most):
            yield random.uniform(0, min(self.most_seconds, self.first_seconds * 2**attempt))
