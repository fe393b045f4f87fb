"""``dmsh-serve web``: a page to search the served gallery by eye."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dmsh_serving.console import console
from dmsh_serving.contract import DEFAULT_GRPC_PORT, RANKER_MODEL
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_serving.triton.server.launcher import TritonServer

IMAGES_HELP = "Folder of the image files that the gallery's keys name."
METADATA_HELP = "Parquet or CSV file with a column `key`; its other columns become filters."
_MOST_DESCRIPTORS: Final = 1 << 16  # some programs go through all that they may have


def web(
    images: Annotated[Path, typer.Option(help=IMAGES_HELP)],
    server: Annotated[str, typer.Option(help="host:port of Triton's gRPC.")] = f"127.0.0.1:{DEFAULT_GRPC_PORT}",
    server_ca: Annotated[Path | None, typer.Option(help="Authorities to trust, PEM: gRPC then speaks TLS.")] = None,
    server_cert: Annotated[
        Path | None, typer.Option(help="Certificate to show to Triton, PEM, for mutual TLS.")
    ] = None,
    server_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    server_token_file: Annotated[Path | None, typer.Option(help="File with the token for Triton's proxy.")] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(help="Folder of the gallery that Triton serves; filters, examples and the page Gallery need it."),
    ] = None,
    metadata: Annotated[Path | None, typer.Option(help=METADATA_HELP)] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; all but loopback need TLS files or --insecure.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.")] = 8080,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name that the page answers to; may be given again.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM: the page then speaks HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others reach the page without TLS.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of thumbnails.  [default: in the cache folder]")] = None,
    cache_mb: Annotated[int, typer.Option(min=1, help="Most MiB of thumbnails and large views that are kept.")] = 512,
    upload_mb: Annotated[int, typer.Option(min=1, max=64, help="Largest upload, in MiB.")] = 32,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds until an answer of Triton is given up.")
    ] = 10.0,
) -> None:
    """Show a page to search by eye over a running Triton. It is there until Ctrl-C or SIGTERM."""
    from dmsh_serving.tls import client_tls, read_token
    from dmsh_serving.web.settings import WebSettings

    settings = WebSettings(
        triton=server,
        triton_tls=client_tls(False, server_ca, server_cert, server_key),
        triton_token=read_token(server_token_file, "--server-token-file"),
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

    allow_descriptors()
    page = WebServer(settings)
    console().print(f"the page is at {page.url}")
    page.run()


def allow_descriptors() -> None:
    """Let this process and those that it starts open up to 65,536 files, if the system permits it.

    Each idle connection takes one, and a process usually has 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_page_options(wanted: bool, images: Path | None, metadata: Path | None) -> None:
    """Raise :class:`InputError` unless ``dmsh-serve start`` was told what a page needs, and only for a page."""
    if wanted and images is None:
        raise InputError("--web needs --images FOLDER: the image files that the gallery's keys name")
    if not wanted and (images or metadata):
        raise InputError("--images and --metadata are for the page: give --web too")


@contextlib.contextmanager
def page_beside(server: "TritonServer", images: Path | None, metadata: Path | None, port: int) -> Iterator[None]:
    """Show a page over the gallery that ``server`` serves, for as long as the block runs; none without ``images``."""
    if images is None:
        yield
        return
    from dmsh_serving.web.server import WebServer
    from dmsh_serving.web.settings import WebSettings

    gallery = served_gallery(server)
    if gallery is None and metadata is not None:
        raise InputError("--metadata needs a gallery in a folder: the one that is served lies in ClickHouse")
    settings = WebSettings(triton=server.url, images=images, gallery=gallery, metadata=metadata, port=port)
    with WebServer(settings) as page:
        console().print(f"the page is at {page.url}")
        yield


def served_gallery(server: "TritonServer") -> Path | None:
    """Return the folder of the gallery that ``server`` serves, or None if it lies in ClickHouse."""
    import tritonclient.grpc as triton

    from dmsh_serving.clickhouse.address import is_address
    from dmsh_serving.triton.served_config import gallery_folder

    with triton.InferenceServerClient(server.url) as client:
        parameters = client.get_model_config(RANKER_MODEL).config.parameters
    place = str(parameters["gallery"].string_value)
    return None if is_address(place) else gallery_folder(server.repository / RANKER_MODEL, place)
