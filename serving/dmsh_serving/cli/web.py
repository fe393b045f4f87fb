"""``dmsh-serve web``: a page to search the served gallery by eye."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import console
from dmsh_serving.contract import DEFAULT_GRPC_PORT

Images = Annotated[Path, typer.Option(help="Folder of the image files that the gallery's keys name.")]
Metadata = Annotated[Path | None, typer.Option(help="Parquet or CSV with a column key: the others become filters.")]
Port = Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")]


def web(
    images: Images,
    server: Annotated[str, typer.Option(help="host:port of Triton's gRPC.")] = f"127.0.0.1:{DEFAULT_GRPC_PORT}",
    gallery: Annotated[
        Path | None, typer.Option(help="Folder of the gallery that Triton serves: for filters, examples, its care.")
    ] = None,
    metadata: Metadata = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others need TLS files or --insecure.")] = "127.0.0.1",
    port: Port = 8080,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name that the page answers to; may be given again.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM: the page then speaks HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others reach the page without TLS.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of thumbnails.  [default: in the cache folder]")] = None,
    cache_mb: Annotated[int, typer.Option(min=1, help="Most MiB of thumbnails that are kept.")] = 512,
    upload_mb: Annotated[int, typer.Option(min=1, max=64, help="Largest upload, in MiB.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until an answer of Triton is given up.")] = 10.0,
) -> None:
    """Show a page to search the gallery that a running Triton serves, until Ctrl-C or SIGTERM."""
    from dmsh_serving.web.settings import WebSettings

    settings = WebSettings(
        triton=server,
        images=images,
        gallery=gallery,
        metadata=metadata,
        host=host,
        port=port,
        names=tuple(name or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
        cache_mb=cache_mb,
        upload_mb=upload_mb,
        timeout=timeout,
        **({} if cache is None else {"cache": cache}),
    )
    from dmsh_serving.web.server import WebServer

    page = WebServer(settings)
    console().print(f"the page is at {page.url}")
    page.run()
