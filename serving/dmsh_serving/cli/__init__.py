"""``dmsh-serve``: start Triton, query it, load it, keep galleries, measure the search."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving import console
from dmsh_serving.cli import gallery_contents, gallery_remote  # noqa: F401  # their commands join gallery_app
from dmsh_serving.cli.bench import bench
from dmsh_serving.cli.gallery import gallery_app
from dmsh_serving.cli.load import load
from dmsh_serving.cli.query import query
from dmsh_serving.cli.web import IMAGES_HELP, METADATA_HELP, check_page_options, page_beside, web
from dmsh_serving.commands import command
from dmsh_serving.contract import DEFAULT_GRPC_PORT

app = console.make_app("Serve an exact image search with Triton, and ask it.", "dmsh-serve")
app.add_typer(gallery_app, name="gallery")
command(app, "dmsh-serve bench --bits 64 --codes 100000 -k 10")(bench)
command(app, "dmsh-serve web --images photos --gallery build/gallery")(web)


@command(app, "dmsh-serve start --repository build/repository")
def start(
    repository: Annotated[Path, typer.Option(help="Model repository that dmsh-export repository wrote.")],
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = DEFAULT_GRPC_PORT,
    http_port: Annotated[int | None, typer.Option(help="Port for HTTP.  [default: a free one]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for metrics.  [default: a free one]")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; whoever reaches it may search.")] = "127.0.0.1",
    triton: Annotated[Path | None, typer.Option(help="tritonserver, its folder, or a Python environment.")] = None,
    log_file: Annotated[
        Path | None, typer.Option(help="Log file of the server.  [default: in the cache folder]")
    ] = None,
    with_page: Annotated[bool, typer.Option("--web", help="Also show a page to search by eye.")] = False,
    images: Annotated[Path | None, typer.Option(help=f"For the page. {IMAGES_HELP}")] = None,
    metadata: Annotated[Path | None, typer.Option(help=f"For the page. {METADATA_HELP}")] = None,
    web_port: Annotated[int, typer.Option(help="For the page: its port; 0 takes a free one.")] = 8080,
) -> None:
    """Start Triton on a model repository. It answers until Ctrl-C or SIGTERM."""
    import signal
    import sys

    from dmsh_serving.triton.server.launcher import LOOPBACK, TritonServer

    # SIGHUP says that the terminal is gone; nohup has it ignored, and that stays.
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    endings = (signal.SIGTERM, signal.SIGINT, *hung_up)

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    def interrupt(number: int, frame: object) -> None:
        for each in endings:
            signal.signal(each, signal.SIG_IGN)  # the stop is under way: a second signal must not cut it short
        raise KeyboardInterrupt

    check_page_options(with_page, images, metadata)
    for each in endings:
        signal.signal(each, interrupt)
    server = TritonServer(
        repository,
        triton=triton,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log_file=log_file,
        on_event=say,
    )
    with server:
        if host != LOOPBACK:
            say(f"warning: listening on {host}, where others may reach it: Triton has no authentication of its own")
        console.console().print(
            f"Triton is ready: gRPC {server.url}, HTTP {server.http_url}, metrics http://{server.metrics_url}/metrics, "
            f"log {server.log_file}"
        )
        try:
            with page_beside(server, images, metadata, web_port):
                server.wait()
        except KeyboardInterrupt:
            say("stopping Triton: requests in flight are answered first")


command(
    app,
    "dmsh-serve query photos/red/photos-00.png -k 3",
    "dmsh-serve query more -k 5 --images photos --sheet build/neighbours.html",
)(query)
command(
    app,
    "dmsh-serve load 127.0.0.1:8001 --images photos --concurrency 1 --window 0.5",
    "dmsh-serve load 127.0.0.1:8001 --images photos --rate 20 --window 0.5 --slo p90=5s",
)(load)


def main() -> None:
    """Run the command line."""
    console.run(app)
