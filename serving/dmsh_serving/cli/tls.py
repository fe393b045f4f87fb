"""The options by which a command asks a server over TLS, and shows a token to the proxy before it."""

from pathlib import Path
from typing import Annotated

import typer

TlsOption = Annotated[
    bool, typer.Option("--tls", help="Ask over TLS, trusting the system's authorities.", rich_help_panel="TLS")
]
CaOption = Annotated[Path | None, typer.Option("--tls-ca", help="Authorities to trust, PEM.", rich_help_panel="TLS")]
CertOption = Annotated[
    Path | None, typer.Option("--tls-cert", help="Own certificate, PEM, for mutual TLS.", rich_help_panel="TLS")
]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.", rich_help_panel="TLS")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token for the server's proxy.", rich_help_panel="TLS")
]
