"""A breaker: after a failure callers are told at once that the server is down, and one tries it now and then."""

import threading
import time
from typing import Final

__all__ = ["Breaker"]

_FIRST_SECONDS: Final = 0.5
_LAST_SECONDS: Final = 8.0


class Breaker:
    """Counts failures of one server. It is used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wait = 0.0
        self._again = 0.0
        self.reason = ""

    def allows(self) -> bool:
        """Say whether the server may be asked; while it is down, only one caller per waiting time is allowed."""
        with self._lock:
            if not self._wait:
                return True
            now = time.monotonic()
            if now < self._again:
                return False
            self._again = now + self._wait
            return True

    def failed(self, reason: str) -> None:
        """Note that the server did not answer; each time in a row it is left alone for twice as long."""
        with self._lock:
            self._wait = min(2 * self._wait, _LAST_SECONDS) if self._wait else _FIRST_SECONDS
            self._again = time.monotonic() + self._wait
            self.reason = reason

    def answered(self) -> None:
        """Note that the server answered."""
        with self._lock:
            self._wait = 0.0
