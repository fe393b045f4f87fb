"""A request's way through the models as OpenTelemetry spans, which Triton itself sends to a collector."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from dmsh_serving.errors import InputError

__all__ = ["Tracing"]

_SERVICE: Final = "dmsh"


@dataclass(frozen=True)
class Tracing:
    """Send the spans of one request of ``every`` to ``url``, which takes OTLP over HTTP.

    Triton sends them every few seconds, and drops what a collector that is away does not take; requests never wait.

    Raises:
        InputError: this is no such address, or ``every`` is below 1.
    """

    url: str
    every: int = 1

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--trace {self.url}: name a collector such as http://127.0.0.1:4318/v1/traces")
        if self.every < 1:
            raise InputError(f"--trace-every {self.every}: give 1 for every request, or more")

    def options(self) -> list[str]:
        """Return tritonserver's options."""
        return [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            f"--trace-config=rate={self.every}",
            f"--trace-config=opentelemetry,url={self.url}",
            f"--trace-config=opentelemetry,resource=service.name={_SERVICE}",
        ]
