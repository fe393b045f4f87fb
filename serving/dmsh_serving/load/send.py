"""Send requests: by clients that wait for their answers, or at times that no answer can delay."""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from dmsh_serving.errors import InputError

__all__ = ["UNSENT", "Arrivals", "Closed", "Load", "Open", "Request", "Sender", "sending"]

Arrivals = Literal["poisson", "fixed"]

UNSENT: Final = "UNSENT"  # the error of a request that was due while MOST_WAITING others had no answer
MOST_WAITING: Final = 4096


class Sender(Protocol):
    """Sends one request after the other to what is measured; its methods may be called from any thread.

    Both methods tell the kind of error, None if there was none.
    """

    def call(self) -> str | None:
        """Send a request and wait for its answer."""

    def start(self, done: Callable[[str | None], None]) -> None:
        """Send a request without waiting; ``done`` is called in any thread when it was answered."""


@dataclass(frozen=True)
class Closed:
    """``concurrency`` clients, each of which sends its next request when it has the answer to the last."""

    concurrency: int

    def __post_init__(self) -> None:
        """Refuse no clients."""
        if self.concurrency < 1:
            raise InputError(f"concurrency {self.concurrency}: give at least 1")

    def __str__(self) -> str:
        return f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"


@dataclass(frozen=True)
class Open:
    """``rate`` requests per second, whatever the answers do: as users who know nothing of each other."""

    rate: float
    arrivals: Arrivals = "poisson"

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        if not 0 < self.rate <= 1e6:
            raise InputError(f"rate {self.rate}: give more than 0 requests per second, and at most a million")

    def __str__(self) -> str:
        return f"{self.rate:g}/s {self.arrivals}"


Load = Closed | Open


@dataclass(frozen=True, slots=True)
class Request:
    """One request that has ended.

    Attributes:
        due: when it should have been sent, by ``time.perf_counter``. In a closed loop that is when it was sent. In an
            open one it may have been sent later, if this program or the machine was late: its latency counts from
            here, or the slowest moments would be the least measured ("coordinated omission", G. Tene).
        done: when its answer had arrived.
        error: the kind of error; None if there was none.
    """

    due: float
    done: float
    error: str | None

    @property
    def seconds(self) -> float:
        """Its latency."""
        return self.done - self.due


@contextlib.contextmanager
def sending(sender: Sender, load: Load, ended: list[Request], drain_seconds: float) -> Iterator[None]:
    """While inside, put ``load`` on ``sender``; each request joins ``ended`` when it has ended.

    At the end no more requests are sent, and those in flight are waited for, ``drain_seconds`` at most.
    """
    stop = threading.Event()
    threads = _clients(sender, load, ended, stop) if isinstance(load, Closed) else [_clock(sender, load, ended, stop)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        deadline = time.monotonic() + drain_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _clients(sender: Sender, load: Closed, ended: list[Request], stop: threading.Event) -> list[threading.Thread]:
    def ask() -> None:
        while not stop.is_set():
            due = time.perf_counter()
            error = sender.call()
            ended.append(Request(due, time.perf_counter(), error))

    return [
        threading.Thread(target=ask, name=f"load-client-{number}", daemon=True) for number in range(load.concurrency)
    ]


def _clock(sender: Sender, load: Open, ended: list[Request], stop: threading.Event) -> threading.Thread:
    """Return a thread that sends at the given rate, then waits for the answers."""
    waiting = threading.Semaphore(MOST_WAITING)

    def send(due: float) -> None:
        if not waiting.acquire(blocking=False):
            ended.append(Request(due, due, UNSENT))
            return

        def done(error: str | None) -> None:
            ended.append(Request(due, time.perf_counter(), error))
            waiting.release()

        sender.start(done)

    def keep_time() -> None:
        for due in _times(load, time.perf_counter()):
            # A wait of no time looks at the event all the same.
            if stop.wait(max(0.0, due - time.perf_counter())):
                break
            send(due)
        for _ in range(MOST_WAITING):
            waiting.acquire()

    return threading.Thread(target=keep_time, name="load-clock", daemon=True)


def _times(load: Open, start: float) -> Iterator[float]:
    """Yield when requests are due, for ever; always the same random numbers."""
    if load.arrivals == "fixed":
        yield from (start + number / load.rate for number in itertools.count())
    numbers = random.Random(0)
    due = start
    while True:
        due += numbers.expovariate(load.rate)
        yield due
