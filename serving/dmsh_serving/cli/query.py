"""``dmsh-serve query``: the nearest gallery images of image files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsh_serving import console
from dmsh_serving.cli.tls import CaOption, CertOption, KeyOption, TlsOption, TokenOption
from dmsh_serving.contract import DEFAULT_GRPC_PORT, DEFAULT_K, PAD_ID, SEARCH_FILE_MODEL
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_serving.client import Answer

__all__ = ["query"]

_SHOWN = 3


def query(
    files: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    url: Annotated[str, typer.Option(help="host:port of Triton's gRPC.")] = f"127.0.0.1:{DEFAULT_GRPC_PORT}",
    k: Annotated[int, typer.Option("-k", help="Number of nearest images.")] = DEFAULT_K,
    radius: Annotated[int | None, typer.Option(help="Only images at most this many bits away.")] = None,
    rerank: Annotated[
        str | None, typer.Option(help="asymmetric: order images at equal distance by the query's logits.")
    ] = None,
    allow: Annotated[Path | None, typer.Option(help="Only images with these ids: an .npy file, integers [M].")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write the neighbours as pictures to this .html file.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="With --sheet: folder of the gallery's images.")] = None,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    token_file: TokenOption = None,
    json: console.JsonOption = None,
) -> None:
    """Find the nearest gallery images of image files. A Triton must be running.

    If a file cannot be searched, the others are answered, it is named at the end, and the exit code is 2.
    """
    if (sheet is None) != (images is None):
        raise InputError("--sheet shows the images that the gallery's keys name: give it with --images FOLDER")
    if images is not None and not images.is_dir():
        raise InputError(f"--images {images} is not a folder: give the folder that the gallery was built from")
    allowed = None
    if allow is not None:
        from dmsh_serving.gallery.tables import read_ids

        allowed = read_ids(allow)
    from dmsh_serving.tls import client_tls, read_token

    shown = {"tls": client_tls(tls, tls_ca, tls_cert, tls_key), "token": read_token(token_file)}
    found, bad = _files(files)
    results: list[dict[str, Any]] = []
    if found:
        for file, answer in _answers(url, shown, found, bad, k=k, radius=radius, allowed=allowed, rerank=rerank):
            results.append({"file": str(file), **_result(answer)})
            _print(results[-1])
    if sheet is not None and images is not None and results:
        from dmsh_serving.cli.sheet import write_sheet

        write_sheet(sheet, results, images)
        console.console().print(f"wrote {sheet}")
    console.write_json(json, {"url": url, "k": k, "radius": radius, "rerank": rerank, "results": results, "bad": bad})
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        asked = len(bad) + len(results)
        count = f"{len(bad)} of {asked} files cannot be searched: " if asked > 1 else ""
        raise InputError(count + "; ".join(bad[:_SHOWN]) + more)


def _files(given: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the files to ask for, those of folders included, and one line for each that is not there."""
    from dmsh_serving.images.read import image_paths

    found, bad = [], []
    for path in given:
        if path.is_dir():
            found += image_paths(path)
        elif path.is_file():
            found.append(path)
        else:
            bad.append(f"{path}: no such file")
    if not found and not bad:
        raise InputError(f"{', '.join(map(str, given))}: no images in there")
    return found, bad


def _answers(
    url: str, shown: dict[str, Any], files: list[Path], bad: list[str], **asked: Any
) -> "list[tuple[Path, Answer]]":
    """Return each file with its answer, of one query; what cannot be searched goes to ``bad``, a line for each.

    ``shown`` goes to the client: TLS files and a token.
    """
    from dmsh_serving.client import SearchClient

    answers = []
    with SearchClient(url, **shown) as client:
        size = client.max_batch(SEARCH_FILE_MODEL)
        for start in range(0, len(files), size):
            part = files[start : start + size]
            try:
                answer = client.search_files(part, **asked)
                answers += [(file, answer.of(row)) for row, file in enumerate(part)]
            except (InputError, OSError):  # of one of them: which, is seen one by one
                for file in part:
                    try:
                        answers.append((file, client.search_files([file], **asked).of(0)))
                    except (InputError, OSError) as error:
                        bad.append(f"{file}: {getattr(error, 'strerror', None) or error}")
    return answers


def _result(answer: "Answer") -> dict[str, Any]:
    count = int((answer.ids[0] != PAD_ID).sum())
    columns = (each[0, :count].tolist() for each in (answer.ids, answer.distances, answer.keys))
    nearest = [{"id": number, "distance": distance, "key": key} for number, distance, key in zip(*columns, strict=True)]
    return {"gallery_version": answer.gallery_version[0], "nearest": nearest}


def _print(result: dict[str, Any]) -> None:
    console.print_table(
        f"{result['file']}  (gallery {result['gallery_version']})",
        ["key", "id", "distance"],
        [[image["key"], str(image["id"]), str(image["distance"])] for image in result["nearest"]],
    )
