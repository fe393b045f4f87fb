"""A request's form -> its file and its fields, unless its parser would take long for it."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.problems import ProblemError

__all__ = ["parts_of_form"]

_THREADS: Final = ThreadPoolExecutor(2, "forms")  # not those that every search needs
_MOST_PARTS: Final = 100
_LONGEST_HEAD: Final = 1024  # bytes of a part's
_MOST_OPTIONS: Final = 8  # of a part's head: browsers send two, and each is costly to read
_LONGEST_TYPE: Final = 300  # letters; a boundary has 70 at most

Files = list[tuple[str, bytes]]
Fields = list[tuple[str, str]]


async def parts_of_form(request: Request) -> tuple[Files, Fields]:
    """Return files and fields of a form, each with its name, in their order.

    Raises:
        ProblemError: it is no form, or one that its parser would take long for.
    """
    if len(request.headers["content-type"]) > _LONGEST_TYPE:
        raise ProblemError(415, "the type of the form is too long to be read")
    kind_of_form = parse_options_header(request.headers["content-type"])
    charset = kind_of_form[1].get(b"charset", b"utf-8")
    if charset.lower() != b"utf-8":  # the parser would use any codec, and punycode takes minutes for a megabyte
        raise ProblemError(415, "the texts of a form are UTF-8: send no other charset")
    body = await request.body()
    _check_boundaries(body, kind_of_form[1].get(b"boundary", b""))
    return await in_thread(_parts_of, request.headers, body, threads=_THREADS)


def _parts_of(headers: Headers, body: bytes) -> tuple[Files, Fields]:
    """Run the parser, which takes a microsecond for each byte of a head: not in the loop that answers everybody."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    async def parsed() -> FormData:
        return await MultiPartParser(
            headers, whole(), max_files=1, max_fields=_MOST_PARTS, max_part_size=1 << 20
        ).parse()

    try:
        parts = asyncio.run(parsed()).multi_items()
    except MultiPartException as error:
        raise ProblemError(400, f"the form cannot be read: {error.message}") from None
    files = [(name, part) for name, part in parts if isinstance(part, UploadFile)]
    try:
        found = [(name, part.file.read()) for name, part in files]
    finally:
        for _, part in files:
            part.file.close()
    return found, [(name, part) for name, part in parts if isinstance(part, str)]


def _check_boundaries(body: bytes, boundary: bytes) -> None:
    """Refuse what its parser would take long for, up to a second per megabyte: boundaries that are none, long heads."""
    first, mark = b"--" + boundary, b"\r\n--" + boundary
    start = 2 * body.startswith(b"\r\n")  # which some programs send first
    if not boundary or not body.startswith(first + b"\r\n", start):
        raise ProblemError(400, "the form cannot be read: it does not begin with its boundary")
    end = start + len(first)
    for _ in range(_MOST_PARTS + 1):
        if body[end : end + 2] == b"--":
            return
        if body[end : end + 2] != b"\r\n":
            raise ProblemError(400, "the form cannot be read: its boundary stands inside a part")
        head = body.find(b"\r\n\r\n", end, end + _LONGEST_HEAD)
        if head < 0 or body.count(b";", end, head) > _MOST_OPTIONS:
            raise ProblemError(400, f"the form cannot be read: the head of a part has over {_LONGEST_HEAD} bytes")
        at = body.find(mark, head + 4)  # in a head, the parser knows no boundary
        if at < 0:
            raise ProblemError(400, "the form cannot be read: it has no end")
        end = at + len(mark)
    raise ProblemError(400, f"the form cannot be read: it has more than {_MOST_PARTS} parts")
