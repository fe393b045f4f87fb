"""``dmsh-serve check``: is a server ready, and right? ``dmsh-serve status``: what does it do?"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsh_serving.cli.tls import CaOption, CertOption, KeyOption, TlsOption, TokenOption
from dmsh_serving.console import JsonOption, console, print_table, printable, write_json
from dmsh_serving.contract import DEFAULT_GRPC_PORT
from dmsh_serving.errors import CheckError, DmshError, InputError

if TYPE_CHECKING:
    from dmsh_serving.client import Answer, CodeSpace, SearchClient

_K = 10


def check(
    url: Annotated[str, typer.Argument(help="host:port of Triton's gRPC.")] = f"127.0.0.1:{DEFAULT_GRPC_PORT}",
    fingerprint: Annotated[
        str | None, typer.Option(help="Code space that must be served; its first digits do.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Gallery version that must answer.")] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Folder of the gallery: the whole answer is computed again from it.")
    ] = None,
    budget: Annotated[float, typer.Option(min=0.001, help="Most seconds that the search may take.")] = 5.0,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    token_file: TokenOption = None,
    json: JsonOption = None,
) -> None:
    """Check a running Triton by one search: a start-up probe.

    The search goes through decoder, encoder and ranker of any Triton that serves a repository of this toolkit. The
    image and its code come from the server's own configuration. Exit code 0: ready and right; 1: not.
    """
    from dmsh_serving.client import Retries, SearchClient
    from dmsh_serving.tls import client_tls, read_token

    if fingerprint == "":  # of a variable that is not set: any code space begins with it
        raise InputError("--fingerprint is empty: give the first digits of a code space")
    files, token = client_tls(tls, tls_ca, tls_cert, tls_key), read_token(token_file)
    try:
        with SearchClient(url, timeout=budget, retries=Retries(0), tls=files, token=token) as client:
            found = _checked(client, fingerprint, version, gallery, budget)
    except DmshError as error:
        raise CheckError(f"{url} is not ready: {error}") from error
    code = "its known code" if found["known_code"] else "no known code: the repository carries none"
    console().print(
        f"{url} is ready: gallery {printable(found['gallery_version'])}, "
        f"code space {found['fingerprint'][:12]}, {code}, {found['seconds'] * 1e3:.1f} ms"
    )
    write_json(json, {"url": url, **found})


def status(
    port: Annotated[int, typer.Argument(help="Port of its gRPC.")] = DEFAULT_GRPC_PORT,
    http: Annotated[str | None, typer.Option(help="host:port of its HTTP, if dmsh-serve did not start it.")] = None,
    metrics: Annotated[str | None, typer.Option(help="host:port of its metrics, likewise.")] = None,
    json: JsonOption = None,
) -> None:
    """Show what a server of this machine does.

    Ready or not, gallery version, restarts, requests, how long they take, and what was refused.
    """
    from dmsh_serving.triton.server.addresses import Addresses
    from dmsh_serving.triton.server.status import Seen

    if (http is None) != (metrics is None):
        raise InputError("--http and --metrics belong together: give both")
    if http is not None and metrics is not None:
        seen, rows = Seen.of(http, metrics), []
    else:
        noted = Addresses.noted(port)
        seen = Seen.of(noted.http, noted.metrics)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(noted.started))
        rows = [["gRPC", noted.grpc], ["HTTP", noted.http], ["metrics", f"http://{noted.metrics}/metrics"]]
        rows += [["started", since], ["repository", noted.repository], ["log", noted.log]]
    print_table("The server", ["", ""], rows + seen.rows())
    write_json(json, {**dict(rows), **seen.to_dict()})


def _checked(
    client: "SearchClient", fingerprint: str | None, version: str | None, folder: Path | None, budget: float
) -> dict[str, Any]:
    from dmsh_serving.contract import DECODE_MODEL, RANKER_MODEL
    from dmsh_serving.triton.canary import Canary

    space = client.code_space()
    for model, what in ((DECODE_MODEL, "decoder"), (RANKER_MODEL, "ranker")):
        theirs = client.parameters(model).get("fingerprint")
        if theirs != space.fingerprint:
            raise CheckError(f"its encoder is of code space {space.fingerprint[:12]}, its {what} of {str(theirs)[:12]}")
    if fingerprint is not None and not space.fingerprint.startswith(fingerprint.lower()):
        raise CheckError(f"it serves code space {space.fingerprint[:12]}, not {fingerprint}")
    canary = Canary.from_parameters(client.parameters(DECODE_MODEL))
    started = time.perf_counter()
    answer = client.search_files([canary.file], _K)
    seconds = time.perf_counter() - started
    if bits := canary.differing_bits(answer.code[0].tobytes()):
        raise CheckError(f"{bits} of {space.bits} bits of a known image's code are wrong")
    found = str(answer.gallery_version[0])
    if version is not None and found != version:
        raise CheckError(f"gallery version {found} answers, not {version}")
    if folder is not None:
        _check_answer(answer, folder, space)
    if seconds > budget:
        raise CheckError(f"a search took {seconds:.3f} s, more than {budget:g} s")
    return {
        "fingerprint": space.fingerprint,
        "bits": space.bits,
        "gallery_version": found,
        "known_code": canary.code is not None,
        "seconds": seconds,
    }


def _check_answer(answer: "Answer", folder: Path, space: "CodeSpace") -> None:
    """Raise :class:`CheckError` unless the gallery in ``folder`` gives the same answer."""
    import numpy as np

    from dmsh_serving import gallery

    snapshot = gallery.open_current(folder, fingerprint=space.fingerprint, bits=space.bits)
    if snapshot.version != answer.gallery_version[0]:
        raise CheckError(f"gallery version {answer.gallery_version[0]} answers, {folder} is at {snapshot.version}")
    expected = snapshot.search(answer.code, _K)
    if not (np.array_equal(expected.ids, answer.ids) and np.array_equal(expected.distances, answer.distances)):
        raise CheckError(f"its answer is not that of {folder}")
