"""What a service promises about its latency, and where its knee is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dmsh_serving.errors import InputError
from dmsh_serving.load.measure import PERCENTILES, Measured

__all__ = ["Objective", "knee_of"]

_FORM = re.compile(r"(p50|p90|p99|p99\.9|max)=(\d+(?:\.\d+)?)(ms|s)")


@dataclass(frozen=True)
class Objective:
    """``percentile`` of the latencies is at most ``most_ms`` milliseconds; a request that failed took for ever."""

    percentile: str
    most_ms: float

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read an objective such as ``p99=5ms``."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise InputError(f"--slo {text}: write it as p99=5ms; a percentile is one of {', '.join(PERCENTILES)}")
        return cls(match[1], float(match[2]) * (1000 if match[3] == "s" else 1))

    def __str__(self) -> str:
        return f"{self.percentile} <= {self.most_ms:g} ms"

    def missed_by(self, measured: Measured) -> str | None:
        """Say in a line how ``measured`` misses it; None if it does not."""
        found = measured.milliseconds(self.percentile, with_failed=True)
        if found is None:
            return f"{measured.load}: {len(measured.seconds)} requests are too few to tell {self}: measure longer"
        if found <= self.most_ms:
            return None
        said = "some never answered" if found == float("inf") else f"{found:.3g} ms"
        return f"{measured.load}: {self} is missed: {said}"


def knee_of(sweep: Sequence[Measured]) -> Measured | None:
    """Return the load with the most throughput per latency, beyond which waiting grows faster than throughput.

    Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer communications", ICC 1979.
    """
    powers = [
        (measured.requests_per_s / median, measured)
        for measured in sweep
        if (median := measured.milliseconds("p50")) is not None
    ]
    return max(powers, key=lambda pair: pair[0])[1] if powers else None
