"""What the models tell the server's metrics.

Changing a metric asks Triton's process and waits for it, which took as long as ranking a small gallery. So everything
is counted here, and handed on twice a second by a thread. For the same reason the histograms are counters of their
buckets, which Prometheus reads alike: Triton's own kind of histogram is told every single value.
"""

import os
import platform
import threading
import time
from bisect import bisect_left
from collections import Counter
from typing import Any, Final

import numpy as np

from dmsh_serving import __version__
from dmsh_serving.ranker.engine import Engine
from dmsh_serving.ranker.follower import POLL_SECONDS, RankerEvents

__all__ = ["RESTARTS_VARIABLE", "SLOW_SECONDS", "SLOW_SECONDS_VARIABLE", "ModelMetrics", "RankerMetrics"]

RESTARTS_VARIABLE: Final = "DMSH_RESTARTS"  # by these the launcher tells the models
SLOW_SECONDS_VARIABLE: Final = "DMSH_SLOW_SECONDS"
SLOW_SECONDS: Final = 1.0
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
_REPORT_SECONDS: Final = POLL_SECONDS
REASONS: Final = ("unreadable", "invalid", "unavailable", "internal")
"""Why a request was refused: its bytes do not agree with its shape, it asks what cannot be, the gallery's database does
not answer or other images took the time of its batch, or the server failed."""


class ModelMetrics:
    """Requests of one model, their seconds, and those refused. ``step`` is decode, encode or rank.

    The families must live as long as their metrics.
    """

    def __init__(self, step: str) -> None:
        self.step = step
        self._families: list[Any] = []
        self._lock = threading.Lock()
        self._answered, self._spent = [0] * (len(BUCKETS) + 1), 0.0
        self._refusals: Counter[str] = Counter()
        self._buckets = self._labelled(
            f"dmsh_{step}_seconds_bucket",
            f"Requests that the {step} step worked on for at most le seconds, with their batch",
            "COUNTER",
            "le",
            [*(f"{edge:g}" for edge in BUCKETS), "+Inf"],
        )
        self._sum = self._metric(f"dmsh_{step}_seconds_sum", f"Seconds of the requests of the {step} step", "COUNTER")
        self._count = self._metric(f"dmsh_{step}_seconds_count", f"Requests of the {step} step", "COUNTER")
        self._refused = self._labelled(
            f"dmsh_{step}_refused_total", f"Requests that the {step} step refused", "COUNTER", "reason", REASONS
        )
        self._stop = threading.Event()
        self._reporter = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to hand on."""
        self._reporter.start()

    def close(self) -> None:
        """Stop handing on."""
        self._stop.set()
        if self._reporter.ident is not None:
            self._reporter.join()

    def answered(self, requests: int, seconds: float) -> None:
        """Count requests that were worked on together for ``seconds``."""
        with self._lock:
            self._answered[bisect_left(BUCKETS, seconds)] += requests
            self._spent += requests * seconds

    def request_refused(self, reason: str) -> None:
        """Count a request that was refused, for one of :data:`REASONS`."""
        with self._lock:
            self._refusals[reason] += 1

    def report(self) -> None:
        """Hand on what was counted since the last time."""
        with self._lock:
            answered, self._answered = self._answered, [0] * (len(BUCKETS) + 1)
            spent, self._spent = self._spent, 0.0
            refusals, self._refusals = self._refusals, Counter()
        for bucket, below in zip(self._buckets.values(), np.cumsum(answered).tolist(), strict=True):
            if below:
                bucket.increment(below)
        if any(answered):
            self._sum.increment(spent)
            self._count.increment(sum(answered))
        for reason, count in refusals.items():
            self._refused[reason].increment(count)

    def _run(self) -> None:
        while not self._stop.wait(_REPORT_SECONDS):
            self.report()

    def _metric(self, name: str, description: str, kind: str, **labels: str) -> Any:
        return self._family(name, description, kind).Metric(labels=labels)

    def _labelled(self, name: str, description: str, kind: str, label: str, values: Any) -> dict[str, Any]:
        family = self._family(name, description, kind)
        return {value: family.Metric(labels={label: value}) for value in values}

    def _family(self, name: str, description: str, kind: str) -> Any:
        import triton_python_backend_utils as pb_utils

        kinds = pb_utils.MetricFamily
        family = pb_utils.MetricFamily(name=name, description=description, kind=getattr(kinds, kind))
        self._families.append(family)
        return family


class RankerMetrics(ModelMetrics, RankerEvents):
    """Also what a ranker tells of its gallery. The ranker's own thread reports."""

    def __init__(self) -> None:
        super().__init__("rank")
        self._queries_counted = 0
        self._current: bool | None = None
        self._codes = self._metric("dmsh_gallery_codes", "Codes in the gallery version that serves", "GAUGE")
        self._version = self._metric(
            "dmsh_gallery_version_number", "Counter that the name of the serving gallery version begins with", "GAUGE"
        )
        self._wanted = self._metric(
            "dmsh_gallery_wanted_version_number", "The same of the version that CURRENT names", "GAUGE"
        )
        self._swaps = self._metric("dmsh_gallery_swaps_total", "New gallery versions that were swapped in", "COUNTER")
        self._swap_seconds = self._metric(
            "dmsh_gallery_swap_seconds_total",
            "Seconds spent opening and checking versions that were swapped in",
            "COUNTER",
        )
        self._failed = self._metric(
            "dmsh_gallery_failed_swaps_total",
            "New gallery versions that could not be used, so the old one went on serving",
            "COUNTER",
        )
        self._followed = self._metric(
            "dmsh_gallery_current",
            "1 if the version that CURRENT names serves, 0 if that one cannot be used and an older one serves",
            "GAUGE",
        )
        self._looked = self._metric(
            "dmsh_gallery_looked_timestamp_seconds",
            "When the ranker last looked at CURRENT, in seconds since 1970",
            "GAUGE",
        )
        self._queries = self._metric("dmsh_rank_queries_total", "Queries ranked", "COUNTER")
        self._metric("dmsh_restarts", "How often dmsh-serve start started this server again", "GAUGE").set(
            float(os.environ.get(RESTARTS_VARIABLE, "0"))
        )
        self._metric(
            "dmsh_build_info",
            "1; its labels say what runs",
            "GAUGE",
            version=__version__,
            python=platform.python_version(),
            numpy=np.__version__,
        ).set(1)

    def serving(self, snapshot: Engine, swapped: bool) -> None:
        """Note the version that serves."""
        self._codes.set(snapshot.count)
        self._version.set(int(snapshot.version[:8]))
        if swapped:
            self._swaps.increment(1)

    def wanted(self, version: str) -> None:
        """Note the version that should serve."""
        self._wanted.set(int(version[:8]))

    def opened(self, seconds: float) -> None:
        """Count the time that a swap took."""
        self._swap_seconds.increment(seconds)

    def refused(self) -> None:
        """Count a version that could not be used."""
        self._failed.increment(1)

    def following(self, current: bool) -> None:
        """Note whether the version that serves is the one that should."""
        if current != self._current:
            self._current = current
            self._followed.set(int(current))

    def ranked(self, queries: int) -> None:
        """Count queries."""
        with self._lock:
            self._queries_counted += queries

    def report(self) -> None:
        """Hand on what was counted since the last time, and that the gallery is followed."""
        with self._lock:
            queries, self._queries_counted = self._queries_counted, 0
        super().report()
        if queries:
            self._queries.increment(queries)
        self._looked.set(time.time())
