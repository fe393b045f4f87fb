"""What a running server's health and metrics say, as figures with names."""

import contextlib
import http.client
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from dmsh_serving.errors import MissingError

__all__ = ["Seen", "quantile", "samples_of"]

_SAMPLE: Final = re.compile(r"^(dmsh_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
STEPS: Final = ("decode", "encode", "rank")
_SECONDS: Final = 5.0  # for an answer

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True)
class Seen:
    """One look at a server. ``samples`` are its metrics of ours, by name: labels and value."""

    ready: bool
    samples: Samples = field(repr=False)

    @classmethod
    def of(cls, http_url: str, metrics_url: str) -> "Seen":
        """Ask the server whose HTTP and metrics are at these host:port.

        Raises:
            MissingError: it does not answer, or its metrics cannot be read.
        """
        text = _asked(metrics_url, "/metrics")[1]
        try:
            seen = cls(_asked(http_url, "/v2/health/ready")[0] == http.HTTPStatus.OK, samples_of(text))
            seen.to_dict()
        except (ValueError, LookupError, OverflowError, StopIteration):
            raise MissingError(
                f"the metrics at http://{metrics_url}/metrics are not those of a server of ours"
            ) from None
        return seen

    def value(self, name: str) -> float | None:
        """Return the one value of a metric without labels; None if the server has none."""
        found = self.samples.get(name)
        return found[0][1] if found else None

    def refused(self) -> dict[str, int]:
        """Return how many requests were refused, by step and reason, without those of which there are none."""
        return {
            f"{step}: {labels['reason']}": int(count)
            for step in STEPS
            for labels, count in self.samples.get(f"dmsh_{step}_refused_total", [])
            if count
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; what the server does not say is null."""
        looked = self.value("dmsh_gallery_looked_timestamp_seconds")
        (info, _), *_ = self.samples.get("dmsh_build_info", [({}, 0.0)])
        return {
            "ready": self.ready,
            "version": info.get("version"),
            "restarts": _whole(self.value("dmsh_restarts")),
            "gallery": {
                "serving": _whole(self.value("dmsh_gallery_version_number")),
                "wanted": _whole(self.value("dmsh_gallery_wanted_version_number")),
                "codes": _whole(self.value("dmsh_gallery_codes")),
                "swaps": _whole(self.value("dmsh_gallery_swaps_total")),
                "failed_swaps": _whole(self.value("dmsh_gallery_failed_swaps_total")),
                "looked_at_seconds_ago": None if looked is None else round(max(0.0, time.time() - looked), 1),
            },
            "steps": {step: self._step(step) for step in STEPS},
            "refused": self.refused(),
        }

    def rows(self) -> list[list[str]]:
        """Return names and what to show beside them."""
        said = self.to_dict()
        gallery = said["gallery"]
        behind = "" if gallery["serving"] == gallery["wanted"] else f", but {gallery['wanted']} is wanted"
        rows = [
            ["ready", "yes" if self.ready else "NO"],
            ["version", str(said["version"])],
            ["restarts", str(said["restarts"])],
            ["gallery", f"version {gallery['serving']}{behind}, {gallery['codes']} codes"],
            ["  swaps", f"{gallery['swaps']}, {gallery['failed_swaps']} refused"],
            ["  looked at", f"{gallery['looked_at_seconds_ago']} s ago"],
        ]
        for step, found in said["steps"].items():
            times = ", ".join(f"{name} {found[name]:g} ms" for name in ("p50_ms", "p99_ms") if found[name] is not None)
            rows.append([step, f"{found['requests']:,} requests" + (f", at most: {times}" if times else "")])
        return [*rows, *([f"refused, {name}", f"{count:,}"] for name, count in said["refused"].items())]

    def _step(self, step: str) -> dict[str, Any]:
        buckets = [
            (float(labels["le"]), count) for labels, count in self.samples.get(f"dmsh_{step}_seconds_bucket", [])
        ]
        found = {f"p{share:g}_ms": quantile(buckets, share / 100) for share in (50, 99)}
        return {"requests": int(self.value(f"dmsh_{step}_seconds_count") or 0), **found}


def samples_of(text: str) -> Samples:
    """Return the samples of our metrics in Prometheus's text form."""
    found: Samples = defaultdict(list)
    for name, labels, value in _SAMPLE.findall(text):
        found[name].append((dict(_LABEL.findall(labels)), float(value)))
    return dict(found)


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """Return in milliseconds the edge of the bucket (edge in seconds, requests up to it) that ``share`` of them reach.

    None without requests, or if it is beyond the last edge.
    """
    ordered = sorted(buckets)
    if not ordered or not ordered[-1][1]:
        return None
    edge = next(edge for edge, below in ordered if below >= share * ordered[-1][1])
    return None if edge == float("inf") else 1e3 * edge


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _asked(url: str, path: str) -> tuple[int, str]:
    try:
        with contextlib.closing(http.client.HTTPConnection(url, timeout=_SECONDS)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise MissingError(f"nothing answers at http://{url}{path}: {error or type(error).__name__}") from error
