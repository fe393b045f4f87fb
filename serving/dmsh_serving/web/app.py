"""The application: its pages, and the API under ``/v1`` that they use like everyone else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dmsh_serving import __version__
from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import DmshError, InputError
from dmsh_serving.web.answers import MOST_SIZED, SHORT_ANSWER, Times
from dmsh_serving.web.codes.collection import GalleryFolder
from dmsh_serving.web.codes.metadata import Metadata
from dmsh_serving.web.examination import Examinations
from dmsh_serving.web.http.abandoned import AbandonedError, in_thread
from dmsh_serving.web.http.files import OwnFiles
from dmsh_serving.web.http.guard import Guard
from dmsh_serving.web.http.places import Places
from dmsh_serving.web.http.problems import ProblemError, handle
from dmsh_serving.web.http.questions import Question, keys_of, question_of
from dmsh_serving.web.pictures.originals import Originals
from dmsh_serving.web.pictures.thumbnails import MEDIA_TYPE, SHOWN_SECONDS, THUMBNAIL_BOX, VIEW_BOX, Thumbnails
from dmsh_serving.web.search import Searches
from dmsh_serving.web.settings import WebSettings
from dmsh_serving.web.steps import TritonSteps

__all__ = ["Web"]

MOST_ROW_BYTES: Final = 2 << 20  # of an answer, which is in memory until it is read; the page's own have some 1 MB
_ROW_SECONDS: Final = 2.0  # then others have its place
EXAMINATION_SECONDS: Final = 120.0
_SHOWN: Final = f"private, max-age={SHOWN_SECONDS}"
_CLOSED: Final = 499  # nginx's number for a client that went away; nobody reads it


class _KeyConvertor(PathConvertor):
    """The rest of a path, line breaks too: a key may be the name of any file."""

    regex = "(?s:.*)"


register_url_convertor("key", _KeyConvertor())


class Web:
    """Everything that answers requests; ``steps`` and ``searches`` live as long as the event loop.

    Raises:
        InputError: the folder of images or the gallery cannot be used.
    """

    def __init__(self, settings: WebSettings) -> None:
        self.settings = settings
        self.files = OwnFiles.load()
        self.originals = Originals(settings.images)
        self.thumbnails = Thumbnails(self.originals, settings.cache, settings.cache_mb << 20)
        self.gallery = None if settings.gallery is None else GalleryFolder(settings.gallery)
        self.metadata = None if settings.metadata is None else Metadata(settings.metadata)
        self._places = Places(4 * settings.timeout)  # each step of a search has its own time
        self._rendering = asyncio.Semaphore(available_cpus())  # a large image takes up to 200 MB while it is decoded
        # These wait here first, and others pass: rows are many pictures, and views large ones.
        self._rendering_rows, self._rendering_views = (asyncio.Semaphore(available_cpus()) for _ in range(2))
        self._counting = asyncio.Semaphore(available_cpus())
        self._templates = Environment(
            loader=PackageLoader("dmsh_serving.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", self.page("search.html")),
            Route("/gallery", self.page("gallery.html")),
            Route("/static/{digest}/{name}", self.files.serve),
            Route("/v1/search", self.search, methods=["POST"]),
            Route("/v1/encode", self.encode, methods=["POST"]),
            Route("/v1/gallery", self.about),
            Route("/v1/gallery/duplicates", self.duplicates),
            Route("/v1/gallery/shared", self.shared),
            Route("/v1/gallery/bits", self.bits),
            Route("/v1/facets", self.facets),
            Route("/v1/openapi.json", self.openapi),
            Route("/v1/images/{key:key}", self.image),
            Route("/v1/thumbnails", self.several_thumbnails, methods=["POST"]),
            Route("/v1/thumbnails/{key:key}", self.thumbnail),
        ]
        host = self.settings.host
        guard = Middleware(
            Guard,
            names=(*self.settings.names, host, socket.gethostname()),
            scheme=self.settings.scheme,
            most_bytes=self.settings.upload_mb << 20,
        )
        handlers: dict[Any, Any] = dict.fromkeys((ProblemError, DmshError, 404, 405, Exception), handle)
        handlers |= dict.fromkeys((AbandonedError, ClientDisconnect), _gone)
        return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=self._life)

    @contextlib.asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        settings = self.settings
        self.steps = TritonSteps(settings.triton, settings.timeout, settings.triton_tls, settings.triton_token)
        self.searches = Searches(self.steps, self.originals, self.gallery, self.metadata)
        if self.gallery is not None:
            self.examinations = Examinations(self.gallery, self.originals)
        try:
            yield
        finally:
            self.searches.close()
            await self.steps.close()

    def page(self, template: str) -> Callable[[Request], Awaitable[Response]]:
        """Return what answers with one of the pages."""
        html = self._templates.get_template(template).render(static=self.files.address, version=__version__)

        async def answer(request: Request) -> Response:
            return Response(html, headers={"cache-control": "no-cache"}, media_type="text/html")

        return answer

    async def search(self, request: Request) -> Response:
        """POST /v1/search."""
        question = await question_of(request)
        return await self._working(request, lambda: self.searches.answer(question), _kind_of(question))

    async def encode(self, request: Request) -> Response:
        """POST /v1/encode: the code and the logits of one image."""
        question = await question_of(request)
        if len(question.like) != 1 or question.unlike or (question.like[0].file or question.like[0].key) is None:
            raise ProblemError(400, "give one image: a file, or a key")

        async def encoded() -> dict[str, Any]:
            times = Times()
            found = await self.searches.encode(question.like[0], times)
            return {**found.to_dict(), "times": times.to_dict()}

        return await self._working(request, encoded, _kind_of(question))

    async def about(self, request: Request) -> Response:
        """GET /v1/gallery: what is served."""
        space = await self.steps.code_space()
        ready = await self.steps.is_ready()
        if not ready:
            raise ProblemError(503, f"the Triton at {self.settings.triton} is not ready to search")
        await self.searches.check_model()
        collection = None if self.gallery is None else await in_thread(self.gallery.current)
        return JSONResponse(
            {
                "version": None if collection is None else collection.version,
                "count": None if collection is None else len(collection),
                "bits": space.bits,
                "image_size": space.image_size,
                "fingerprint": space.fingerprint,
                "files": len(self.originals),
                "codes": collection is not None,
                "facets": self.metadata is not None,
            },
            headers={"cache-control": "no-store"},
        )

    async def facets(self, request: Request) -> Response:
        """GET /v1/facets: the filters, with how many images each value would leave; the query names what is chosen."""
        if self.metadata is None or self.gallery is None:
            raise ProblemError(404, "there is no metadata: start the page with --gallery and --metadata")
        chosen: dict[str, list[str]] = {}
        for column, value in request.query_params.multi_items():
            chosen.setdefault(column, []).append(value)
        where = tuple((column, tuple(values)) for column, values in chosen.items())
        metadata, collection = self.metadata, await in_thread(self.gallery.current)

        async def counted() -> dict[str, Any]:
            async with self._counting:
                return {"columns": await in_thread(metadata.counts, collection, where)}

        return JSONResponse(await self._places.work(request, counted, "facets"))

    async def openapi(self, request: Request) -> Response:
        """GET /v1/openapi.json."""
        return Response(self.files.content["openapi.json"], media_type="application/json")

    async def duplicates(self, request: Request) -> Response:
        """GET /v1/gallery/duplicates: groups of images within a radius of each other."""
        text = request.query_params.get("radius", "2")
        if not (text.isascii() and text.isdigit() and len(text) < 5):
            raise ProblemError(400, f"radius = {text!r} is no whole number from 0 to 1024")
        return await self._examined(request, "duplicates", int(text))

    async def shared(self, request: Request) -> Response:
        """GET /v1/gallery/shared: groups of images with the same code."""
        return await self._examined(request, "shared")

    async def bits(self, request: Request) -> Response:
        """GET /v1/gallery/bits: how balanced and how correlated the bits are."""
        return await self._examined(request, "bits")

    async def _examined(self, request: Request, name: str, radius: int = 0) -> Response:
        if self.gallery is None:
            raise ProblemError(404, "this needs the gallery's codes: start the page with --gallery FOLDER")
        examined = self.examinations
        if (found := await examined.at_hand(name, radius)) is not None:  # who only looks waits for no place
            return JSONResponse(found, headers={"cache-control": "no-store"})
        return await self._working(request, lambda: examined.made(name, radius), "examinations", EXAMINATION_SECONDS)

    async def image(self, request: Request) -> Response:
        """GET /v1/images/{key}: a view of the image, upright, without metadata."""
        key = request.path_params["key"]

        async def view() -> bytes:
            on_disk = await in_thread(self.thumbnails.looked_up, [key], VIEW_BOX)
            return (await self._picture(key, on_disk, self._rendering_views, VIEW_BOX))[1]

        data = await self._places.work(request, view, "views")
        return Response(data, headers={"cache-control": _SHOWN}, media_type=MEDIA_TYPE)

    async def thumbnail(self, request: Request) -> Response:
        """GET /v1/thumbnails/{key}."""
        key = request.path_params["key"]

        async def looked_up() -> tuple[str, bytes]:
            found = await self._picture(key, await in_thread(self.thumbnails.looked_up, [key]), nullcontext())
            self.thumbnails.hold(key, *found)
            return found

        tag, data = self.thumbnails.at_hand(key) or await self._places.work(request, looked_up, "pictures")
        headers = {"cache-control": _SHOWN, "etag": f'"{tag}"'}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=MEDIA_TYPE)

    async def several_thumbnails(self, request: Request) -> Response:
        """POST /v1/thumbnails: those of a row of cards at once, each behind its length in 4 bytes; 0 if it has none.

        A browser spends far longer on a request than on the picture that it brings. The answer ends after as many as
        fit into it or are made within ``_ROW_SECONDS``, one at least.
        """
        keys = await keys_of(request)
        held = {key: found for key in keys if (found := self.thumbnails.at_hand(key)) is not None}
        absent = [key for key in dict.fromkeys(keys) if key not in held]
        to_come = set(absent)

        async def looked_up() -> None:
            on_disk = await in_thread(self.thumbnails.looked_up, absent)

            async def read(key: str) -> None:
                with contextlib.suppress(ProblemError, InputError):  # no such image, or one that cannot be read
                    held[key] = await self._picture(key, on_disk, self._rendering_rows)
                    self.thumbnails.hold(key, *held[key])
                to_come.discard(key)

            reading = [asyncio.ensure_future(read(key)) for key in absent]
            try:
                done, _ = await asyncio.wait(reading, timeout=_ROW_SECONDS)
                await asyncio.gather(reading[0], *done)
            finally:
                for each in reading:
                    each.cancel()
                await asyncio.wait(reading)  # those in a thread end when it does

        if absent:
            await self._places.work(request, looked_up, "rows")
        body = bytearray()
        for key in keys:
            if key in to_come:
                break
            data = held[key][1] if key in held else b""
            if body and len(body) + 4 + len(data) > MOST_ROW_BYTES:
                break
            body += len(data).to_bytes(4, "big") + data
        return Response(bytes(body), headers={"cache-control": "no-store"}, media_type="application/octet-stream")

    async def _picture(
        self,
        key: str,
        on_disk: Mapping[str, tuple[str, bytes | None]],
        turn: AbstractAsyncContextManager[None],
        box: tuple[int, int] = THUMBNAIL_BOX,
    ) -> tuple[str, bytes]:
        if key not in on_disk:
            raise ProblemError(404, f"no image has the key {key!r}")
        tag, data = on_disk[key]
        if data is None:
            async with turn, self._rendering:
                data = await in_thread(self.thumbnails.made, key, tag, box)
        return tag, data

    async def _working(
        self, request: Request, work: Callable[[], Any], kind: str, seconds: float | None = None
    ) -> Response:
        """Answer with what ``work`` returns; see :meth:`Places.work`."""
        found = await self._places.work(request, work, kind, seconds)
        return JSONResponse(found, headers={"cache-control": "no-store"})


def _kind_of(question: Question) -> str:
    if question.k > MOST_SIZED:
        return "long searches"
    if question.regions:
        return "searches by region"
    if question.files:  # these wait for the decoder, for seconds perhaps, which others do not need
        return "searches by file"
    # All codes are put in order for the others, an older version is opened, perhaps, or many sizes are read.
    is_quick = question.is_first and question.k <= SHORT_ANSWER
    return "searches" if is_quick else "ordered searches"


async def _gone(request: Request, error: Exception) -> Response:
    """Answer a client that went away."""
    return Response(status_code=_CLOSED)
