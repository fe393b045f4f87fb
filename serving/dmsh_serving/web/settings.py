"""What a page is started with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dmsh_serving.errors import InputError
from dmsh_serving.tls import ClientTls
from dmsh_serving.triton.server.home import cache_folder

__all__ = ["WebSettings"]

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORT: Final = 8080
DEFAULT_CACHE_MB: Final = 512
DEFAULT_UPLOAD_MB: Final = 32
DEFAULT_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True)
class WebSettings:
    """One page.

    Attributes:
        triton: host:port of Triton's gRPC.
        triton_tls: the files to ask it over TLS; None asks it without.
        triton_token: shown to a proxy before it that asks for one.
        images: the folder with the files that the gallery's keys name.
        gallery: the folder of the gallery that Triton serves; None if it is out of reach.
        metadata: a Parquet or CSV file with a column ``key``.
        host, port: where the page listens; port 0 is a free one.
        names: host names by which the page is reached, besides IP addresses and ``localhost``.
        tls_cert, tls_key: PEM files; the page then speaks HTTPS.
        insecure: others may reach the page without TLS.
        cache: the folder of thumbnails.
        cache_mb: how much of it is kept, in MiB.
        upload_mb: the largest body of a request, in MiB.
        timeout: seconds until an answer of Triton is given up.

    Raises:
        InputError: options that do not fit each other, or files that are not there.
    """

    triton: str
    images: Path
    triton_tls: ClientTls | None = None
    triton_token: str | None = field(default=None, repr=False)
    gallery: Path | None = None
    metadata: Path | None = None
    host: str = LOOPBACK[0]
    port: int = DEFAULT_PORT
    names: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    cache: Path = field(default_factory=lambda: cache_folder() / "thumbnails")
    cache_mb: int = DEFAULT_CACHE_MB
    upload_mb: int = DEFAULT_UPLOAD_MB
    timeout: float = DEFAULT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        if not self.images.is_dir():
            raise InputError(f"--images {self.images} is not a folder: name the one that the gallery was built from")
        if self.metadata is not None and self.gallery is None:
            raise InputError("--metadata needs --gallery: its rows are matched to the gallery's keys")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key belong together: give both")
        for option, file in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if file is not None and not file.is_file():
                raise InputError(f"{option} {file} is not a file")
        if self.host not in LOOPBACK and self.tls_cert is None and not self.insecure:
            raise InputError(
                f"--host {self.host} lets others reach this page, which asks for no password: give --tls-cert and "
                "--tls-key, or --insecure if the network is yours alone"
            )

    @property
    def scheme(self) -> str:
        """``https`` with TLS files, else ``http``."""
        return "http" if self.tls_cert is None else "https"
