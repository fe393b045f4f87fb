"""TLS for gRPC: the files of a server, those of a client, and its token, checked before they are used."""

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsh_serving.errors import InputError

__all__ = ["ClientTls", "ServerTls", "client_tls", "read_token"]


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server; with ``client_ca``, only clients with a certificate that it signed may ask (mutual TLS).

    Raises:
        InputError: a file is not there, or the key is not that of the certificate, or one that nobody would trust.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        _check_files({"--tls-cert": self.cert, "--tls-key": self.key, "--tls-client-ca": self.client_ca})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # tritonserver itself would call the port taken
        with _said_of(f"--tls-cert {self.cert} and --tls-key {self.key} cannot serve"):
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        if self.client_ca is not None:
            with _said_of(f"--tls-client-ca {self.client_ca} holds no certificates"):
                context.load_verify_locations(self.client_ca)

    def options(self) -> list[str]:
        """Return tritonserver's options."""
        cert, key = self.cert.absolute(), self.key.absolute()  # Triton is started from another folder
        found = ["--grpc-use-ssl=true", f"--grpc-server-cert={cert}", f"--grpc-server-key={key}"]
        if self.client_ca is not None:
            found += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca.absolute()}"]
        return found


@dataclass(frozen=True)
class ClientTls:
    """PEM files of a client: the authorities that it trusts (None: the system's), and its own for mutual TLS.

    Raises:
        InputError: a file is not there, or one of the client's own pair is missing.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        _check_files({"--tls-ca": self.ca, "--tls-cert": self.cert, "--tls-key": self.key})
        if (self.cert is None) != (self.key is None):
            raise InputError("--tls-cert and --tls-key belong together: give both")

    def channel(self) -> dict[str, Any]:
        """Return the arguments of tritonclient's gRPC clients."""
        files = {"root_certificates": self.ca, "certificate_chain": self.cert, "private_key": self.key}
        return {"ssl": True, **{name: None if file is None else str(file) for name, file in files.items()}}

    def credentials(self) -> Any:
        """Return what grpc's own channels take."""
        import grpc

        return grpc.ssl_channel_credentials(
            *(None if file is None else file.read_bytes() for file in (self.ca, self.key, self.cert))
        )


def client_tls(wanted: bool, ca: Path | None, cert: Path | None, key: Path | None) -> ClientTls | None:
    """Return what the options of a command ask for: TLS if it is ``wanted`` or a file of it is given."""
    return ClientTls(ca, cert, key) if wanted or ca or cert or key else None


def read_token(file: Path | None, option: str = "--token-file") -> str | None:
    """Return the token in ``file``: one line of visible ASCII. An option's value itself is in the process list.

    Raises:
        InputError: the file is not there or holds something else.
    """
    if file is None:
        return None
    _check_files({option: file}, "a token in it")
    token = file.read_text(errors="replace").strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InputError(f"{option} {file} must hold one token, of visible ASCII without spaces")
    return token


@contextlib.contextmanager
def _said_of(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {getattr(error, 'reason', None) or error}") from None


def _check_files(files: dict[str, Path | None], what: str = "PEM in it") -> None:
    for option, file in files.items():
        if file is not None and not file.is_file():
            raise InputError(f"{option} {file} is not a file: name one with {what}")
