"""Where a server that was started on this machine is reached: noted in a file, for ``dmsh-serve status``."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.errors import MissingError
from dmsh_serving.files import write_atomically
from dmsh_serving.triton.server.home import cache_folder

__all__ = ["Addresses"]


@dataclass(frozen=True)
class Addresses:
    """host:port of gRPC, HTTP and metrics; the log file; the repository; when it was started, in seconds since 1970."""

    grpc: str
    http: str
    metrics: str
    log: str
    repository: str
    started: float

    def note(self) -> None:
        """Write them down."""
        file = _file(self._port)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, json.dumps(dataclasses.asdict(self)).encode())

    def forget(self) -> None:
        """Remove what was written down."""
        _file(self._port).unlink(missing_ok=True)

    @classmethod
    def noted(cls, grpc_port: int) -> "Addresses":
        """Return those of the server whose gRPC listens on this port.

        Raises:
            MissingError: none was started here by this user, or it has ended.
        """
        try:
            return cls(**json.loads(_file(grpc_port).read_bytes()))
        except (OSError, ValueError, TypeError):
            raise MissingError(
                f"no server of yours on port {grpc_port}: start one with dmsh-serve start, or give --http and --metrics"
            ) from None

    @property
    def _port(self) -> int:
        return int(self.grpc.rpartition(":")[2])


def _file(grpc_port: int) -> Path:
    return cache_folder() / "servers" / f"{grpc_port}.json"
