"""Put a load on a server and measure it once it is stable."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.load.send import Load, Open, Request, Sender, sending
from dmsh_serving.load.split import ModelCounts, ModelSplit, splits_between

__all__ = ["PERCENTILES", "Measured", "Measuring", "measure"]

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_STABLE_WINDOWS: Final = 3
_SPREAD: Final = 0.1  # of the windows' mean
_LEAST_REQUESTS: Final = 30  # in a window: below, chance alone is more than the spread


@dataclass(frozen=True)
class Measuring:
    """How long a load is measured.

    Attributes:
        warm_up_seconds: nothing counts before.
        window_seconds: of one window; it goes on until 30 requests have ended in it, ten times as long at most.
        most_windows: no more windows are measured, even if they never are stable.
    """

    warm_up_seconds: float = 2.0
    window_seconds: float = 2.0
    most_windows: int = 10


@dataclass(frozen=True, eq=False)
class Measured:
    """What one load gave, over its last windows.

    Attributes:
        load: what was asked for.
        batch: images per request.
        stable: whether throughput and median latency of the last three windows are within 10% of their mean.
        span_seconds: the length of those windows.
        seconds: (N,) float64, ascending, the latencies of the answered requests.
        completed: requests that were answered within the span.
        errors: {kind: requests that failed}.
        models: what each model did meanwhile, by the server's own account; empty if it gives none.
    """

    load: Load
    batch: int
    stable: bool
    span_seconds: float
    seconds: npt.NDArray[np.float64]
    completed: int
    errors: Mapping[str, int] = field(default_factory=dict)
    models: Sequence[ModelSplit] = ()

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second."""
        return self.completed / self.span_seconds

    @property
    def images_per_s(self) -> float:
        """Images in answered requests per second."""
        return self.requests_per_s * self.batch

    def milliseconds(self, percentile: str, *, with_failed: bool = False) -> float | None:
        """Return a percentile of the latencies, one that a request really had; None if there are too few to tell.

        ``with_failed`` counts a request that failed as one that took for ever.
        """
        failed = sum(self.errors.values()) if with_failed else 0
        count, share = len(self.seconds) + failed, PERCENTILES[percentile] / 100
        if not count or (share < 1 and round(count * (1 - share), 6) < 1):
            return None
        rank = int(np.ceil(round(share * count, 6))) - 1
        return float("inf") if rank >= len(self.seconds) else 1e3 * float(self.seconds[rank])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "load": {"kind": type(self.load).__name__.lower(), **vars(self.load)},
            "batch": self.batch,
            "stable": self.stable,
            "seconds": self.span_seconds,
            "answered": len(self.seconds),
            "requests_per_s": self.requests_per_s,
            "images_per_s": self.images_per_s,
            "latency_ms": {name: self.milliseconds(name) for name in PERCENTILES},
            "errors": dict(self.errors),
            "models": [model.to_dict() for model in self.models],
        }


@dataclass(frozen=True)
class _Window:
    start: float
    stop: float
    requests_per_s: float
    median_seconds: float


def measure(
    sender: Sender,
    load: Load,
    *,
    batch: int = 1,
    measuring: Measuring = Measuring(),
    counts: Callable[[], Mapping[str, ModelCounts]] = dict,
    drain_seconds: float = 30.0,
    on_window: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Put ``load`` on ``sender`` until three windows in a row agree, and return what those gave.

    Args:
        sender: sends the requests.
        load: how they are sent.
        batch: images per request.
        measuring: how long.
        counts: what the server says that its models have done so far.
        drain_seconds: how long the requests in flight are waited for at the end.
        on_window: called with the number of each window that has ended, from 1.
    """
    ended: list[Request] = []
    windows: list[_Window] = []
    with sending(sender, load, ended, drain_seconds):
        time.sleep(measuring.warm_up_seconds)
        said = [counts()]
        looked_at = len(ended)
        while len(windows) < measuring.most_windows and not _is_stable(windows):
            start = windows[-1].stop if windows else time.perf_counter()
            _wait(ended, looked_at, start, measuring.window_seconds)
            stop = time.perf_counter()
            answered = [request.seconds for request in ended[looked_at:] if request.error is None]
            looked_at = len(ended)
            median = float(np.median(answered)) if answered else float("inf")
            windows.append(_Window(start, stop, len(answered) / (stop - start), median))
            said.append(counts())
            on_window(len(windows))
    last = windows[-_STABLE_WINDOWS:]
    return _measured(ended, load, batch, last, splits_between(said[-len(last) - 1], said[-1]), _is_stable(windows))


def _wait(ended: list[Request], looked_at: int, start: float, seconds: float) -> None:
    time.sleep(seconds)
    while len(ended) - looked_at < _LEAST_REQUESTS and time.perf_counter() - start < 10 * seconds:
        time.sleep(seconds / 10)


def _is_stable(windows: Sequence[_Window]) -> bool:
    last = windows[-_STABLE_WINDOWS:]
    return len(last) == _STABLE_WINDOWS and all(
        np.isfinite(values).all() and np.ptp(values) <= 2 * _SPREAD * np.mean(values) and np.mean(values) > 0
        for values in ([each.requests_per_s for each in last], [each.median_seconds for each in last])
    )


def _measured(
    ended: Sequence[Request],
    load: Load,
    batch: int,
    windows: Sequence[_Window],
    models: Sequence[ModelSplit],
    stable: bool,
) -> Measured:
    start, stop = windows[0].start, windows[-1].stop
    completed = sum(start <= request.done < stop and request.error is None for request in ended)
    # In an open loop a request belongs to the time at which it was due: one that took long is not lost.
    mine = [request for request in ended if start <= (request.due if isinstance(load, Open) else request.done) < stop]
    errors: dict[str, int] = {}
    for request in mine:
        if request.error is not None:
            errors[request.error] = errors.get(request.error, 0) + 1
    seconds = np.sort(np.array([request.seconds for request in mine if request.error is None], np.float64))
    return Measured(load, batch, stable, stop - start, seconds, completed, errors, tuple(models))
