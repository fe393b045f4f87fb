"""``dmsh-serve start``: Triton on a model repository, and a page beside it if wanted."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving import console
from dmsh_serving.cli.web import IMAGES_HELP, METADATA_HELP, allow_descriptors, check_page_options, page_beside
from dmsh_serving.contract import DEFAULT_GRPC_PORT
from dmsh_serving.errors import InputError

_TLS, _PAGE = "TLS", "The page"
_LOOPBACKS = ("127.0.0.1", "::1", "localhost")


def start(
    repository: Annotated[Path, typer.Option(help="Model repository that dmsh-export repository wrote.")],
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = DEFAULT_GRPC_PORT,
    http_port: Annotated[int | None, typer.Option(help="Port for HTTP, on loopback.  [default: a free one]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for metrics.  [default: a free one]")] = None,
    host: Annotated[
        str, typer.Option(help="Address for gRPC; all but loopback need TLS files or --insecure.")
    ] = "127.0.0.1",
    metrics_host: Annotated[
        str, typer.Option(help="Address for metrics; let Prometheus alone reach it.")
    ] = "127.0.0.1",
    triton: Annotated[Path | None, typer.Option(help="tritonserver, its folder, or a Python environment.")] = None,
    log_file: Annotated[
        Path | None, typer.Option(help="Log file of the server.  [default: in the cache folder]")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write each line of the log as a JSON object.")] = False,
    slow_seconds: Annotated[
        float, typer.Option(min=0.0, help="Log the ids of requests that take a model longer.")
    ] = 1.0,
    trace: Annotated[
        str | None, typer.Option(help="Send OpenTelemetry spans to this collector, OTLP over HTTP.", metavar="URL")
    ] = None,
    trace_every: Annotated[int, typer.Option(min=1, help="With --trace: one request of so many.")] = 1,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate, PEM: gRPC then speaks TLS.", rich_help_panel=_TLS)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.", rich_help_panel=_TLS)] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Answer only clients with a certificate of this authority, PEM.", rich_help_panel=_TLS),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others reach gRPC without TLS.", rich_help_panel=_TLS)
    ] = False,
    with_page: Annotated[
        bool, typer.Option("--web", help="Also show a page to search by eye.", rich_help_panel=_PAGE)
    ] = False,
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP, rich_help_panel=_PAGE)] = None,
    metadata: Annotated[Path | None, typer.Option(help=METADATA_HELP, rich_help_panel=_PAGE)] = None,
    web_port: Annotated[int, typer.Option(help="Its port; 0 takes a free one.", rich_help_panel=_PAGE)] = 8080,
) -> None:
    """Start Triton on a model repository. It answers until Ctrl-C or SIGTERM."""
    from dmsh_serving.tls import ServerTls
    from dmsh_serving.triton.server.launcher import TritonServer
    from dmsh_serving.triton.server.tracing import Tracing

    check_page_options(with_page, images, metadata)
    if trace is None and trace_every != 1:
        raise InputError("--trace-every is for --trace URL: give it too")
    tracing = None if trace is None else Tracing(trace, trace_every)
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key belong together: give both")
    if tls_client_ca is not None and tls_cert is None:
        raise InputError("--tls-client-ca needs --tls-cert and --tls-key: clients cannot show theirs without TLS")
    tls = None if tls_cert is None or tls_key is None else ServerTls(tls_cert, tls_key, tls_client_ca)
    if host not in _LOOPBACKS and tls is None and not insecure:
        raise InputError(
            f"--host {host} lets others reach this server, which asks for no password: give --tls-cert and --tls-key, "
            "or --insecure if the network is yours alone"
        )
    if with_page and tls is not None:
        raise InputError("--web is for a server without TLS: start the page by itself, dmsh-serve web --server-ca FILE")
    _interrupt_once()
    allow_descriptors()
    with console.speaking() as say:
        server = TritonServer(
            repository,
            triton=triton,
            host=host,
            metrics_host=metrics_host,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            tls=tls,
            log_file=log_file,
            log_json=log_json,
            slow_seconds=slow_seconds,
            tracing=tracing,
            on_event=say,
        )
        with server:
            if host not in _LOOPBACKS and (tls is None or tls.client_ca is None):
                say(f"warning: whoever reaches {host}:{grpc_port} may search: Triton asks for no password")
            console.console().print(
                f"Triton is ready: gRPC {server.url}, HTTP {server.http_url}, "
                f"metrics http://{server.metrics_url}/metrics, log {server.log_file}"
            )
            try:
                with page_beside(server, images, metadata, web_port):
                    server.wait()
            except KeyboardInterrupt:
                say("stopping Triton: requests in flight are answered first")


def _interrupt_once() -> None:
    """Let the signals that end this command raise KeyboardInterrupt, the first of them alone."""
    # SIGHUP says that the terminal is gone; nohup has it ignored, and that stays.
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    endings = (signal.SIGTERM, signal.SIGINT, *hung_up)

    def interrupt(number: int, frame: object) -> None:
        for each in endings:
            signal.signal(each, signal.SIG_IGN)  # the stop is under way: a second signal must not cut it short
        raise KeyboardInterrupt

    for each in endings:
        signal.signal(each, interrupt)
