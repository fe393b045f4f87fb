"""Places for what is in flight: what costs much has few of its own, and a picture is made once for all who ask."""

import asyncio
import io
import json
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from dmsh_serving.web import app
from dmsh_serving.web.app import Web
from dmsh_serving.web.http import places
from dmsh_serving.web.pictures import thumbnails
from dmsh_serving.web.settings import WebSettings

NAMES = [f"{number}.png" for number in range(12)]


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "available_cpus", lambda: 1)
    (tmp_path / "images").mkdir()
    for name in NAMES:
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name)
    return Web(WebSettings(triton="127.0.0.1:1", images=tmp_path / "images", cache=tmp_path / "cache"))


class Made:
    """Names in the order in which their pictures are made; the first waits until it is let go."""

    def __init__(self, monkeypatch):
        self.names, self.begun, self.let_go = [], threading.Event(), threading.Event()
        monkeypatch.setattr(thumbnails, "rendered", self)

    def __call__(self, data, box, name):
        self.names.append(name)
        self.begun.set()
        assert self.let_go.wait(60)
        return name.encode()


async def asked(web, path, body=None):
    """Return status and body of an answer; ``body`` is a file's bytes, or is sent as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    parts = [{"type": "http.request", "body": content}]
    found = []

    async def receive():
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message):
        found.append(message)

    kind = b"application/octet-stream" if isinstance(body, bytes) else b"application/json"
    headers = [(b"host", b"localhost"), (b"content-type", kind)]
    method = "GET" if body is None else "POST"
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    async with asyncio.timeout(60):
        await web.app()(scope, receive, send)
    return found[0]["status"], b"".join(message["body"] for message in found[1:])


def row(*names):
    return b"".join(len(name).to_bytes(4, "big") + name.encode() for name in names)


async def until(true):
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def test_a_picture_is_made_once_however_often_it_is_asked_for(web, monkeypatch):
    made = Made(monkeypatch)

    async def together():
        rows = [asyncio.ensure_future(asked(web, "/v1/thumbnails", {"keys": NAMES[:1] * 100})) for _ in range(4)]
        alone = [asyncio.ensure_future(asked(web, f"/v1/thumbnails/{NAMES[0]}")) for _ in range(4)]
        await until(lambda: web._places.taken == {"rows": 4, "pictures": 4} and made.begun.is_set())
        made.let_go.set()
        assert await asyncio.gather(*rows) == [(200, row(NAMES[0]) * 100)] * 4
        assert await asyncio.gather(*alone) == [(200, NAMES[0].encode())] * 4

    asyncio.run(together())
    assert made.names == NAMES[:1]


def test_an_answer_has_as_many_pictures_as_fit_and_one_at_least(web, monkeypatch):
    for name in NAMES:
        web.thumbnails.hold(name, "tag", name.encode())
    for most, count in ((1, 1), (len(row(*NAMES[:4])), 4), (len(row(*NAMES[:4])) - 1, 3)):
        monkeypatch.setattr(app, "MOST_ROW_BYTES", most)
        assert asyncio.run(asked(web, "/v1/thumbnails", {"keys": NAMES})) == (200, row(*NAMES[:count]))
    assert asyncio.run(asked(web, "/v1/thumbnails", {"keys": []})) == (200, b"")


def test_a_row_that_takes_long_brings_what_is_made_and_gives_its_place_to_others(web, monkeypatch):
    monkeypatch.setattr(app, "_ROW_SECONDS", 1.0)
    made, slow = Made(monkeypatch), []
    made.let_go.set()

    def rendered(data, box, name):
        if name == NAMES[2]:
            slow.append(name)
            time.sleep(1.5)
        return made(data, box, name)

    monkeypatch.setattr(thumbnails, "rendered", rendered)
    status, body = asyncio.run(asked(web, "/v1/thumbnails", {"keys": NAMES}))
    assert status == 200
    assert body in (row(*NAMES[:1]), row(*NAMES[:2]))
    assert web._places.taken.total() == 0
    status, body = asyncio.run(asked(web, "/v1/thumbnails", {"keys": ["nothing", *NAMES[:3]]}))
    assert (status, body) == (200, bytes(4) + row(*NAMES[:3]))
    assert slow == NAMES[2:3]


def test_an_answer_with_the_largest_picture_a_hundred_times_is_short(web):
    web.thumbnails.hold(NAMES[0], "tag", bytes(220_000))
    status, body = asyncio.run(asked(web, "/v1/thumbnails", {"keys": NAMES[:1] * 100}))
    assert (status, len(body)) == (200, 9 * 220_004)


def test_a_picture_that_is_asked_for_by_itself_does_not_wait_for_rows_of_others(web, monkeypatch):
    made = Made(monkeypatch)

    async def together():
        rows = [asyncio.ensure_future(asked(web, "/v1/thumbnails", {"keys": NAMES[:10]})) for _ in range(3)]
        await until(made.begun.is_set)
        alone = [asyncio.ensure_future(asked(web, f"/v1/{kind}/{NAMES[11]}")) for kind in ("images", "thumbnails")]
        await until(lambda: len(web._rendering._waiters or ()) == 2)
        made.let_go.set()
        assert await asyncio.gather(*alone) == [(200, NAMES[11].encode())] * 2
        assert await asyncio.gather(*rows) == [(200, row(*NAMES[:10]))] * 3

    asyncio.run(together())
    assert sorted(made.names) == sorted([*NAMES[:10], NAMES[11], NAMES[11]])
    assert max(place for place, name in enumerate(made.names) if name == NAMES[11]) <= 4


def test_a_picture_does_not_wait_for_large_views_of_others_and_a_view_is_made_once(web, monkeypatch):
    made = Made(monkeypatch)

    async def together():
        names = [*NAMES[:8], *NAMES[:8]]
        views = [asyncio.ensure_future(asked(web, f"/v1/images/{name}")) for name in names]
        await until(lambda: len(web._rendering_views._waiters or ()) == len(names) - 1)
        status, body = await asked(web, f"/v1/images/{NAMES[9]}")
        assert (status, json.loads(body)["detail"]) == (503, "16 views are in flight already: try again")
        alone = asyncio.ensure_future(asked(web, f"/v1/thumbnails/{NAMES[11]}"))
        await until(lambda: len(web._rendering._waiters or ()) == 1)
        made.let_go.set()
        assert await asyncio.gather(alone, *views) == [(200, name.encode()) for name in [NAMES[11], *names]]

    asyncio.run(together())
    assert made.names.index(NAMES[11]) <= 2
    assert sorted(made.names) == sorted([*NAMES[:8], NAMES[11]])


def test_only_so_many_rows_are_in_flight_but_what_is_in_memory_comes(web, monkeypatch):
    monkeypatch.setattr(places, "MOST_AT_ONCE", {"rows": 0})
    web.thumbnails.hold(NAMES[3], "tag", b"held")
    assert asyncio.run(asked(web, "/v1/thumbnails", {"keys": NAMES[3:4]})) == (200, row("held"))
    status, body = asyncio.run(asked(web, "/v1/thumbnails", {"keys": NAMES}))
    assert (status, json.loads(body)["detail"]) == (503, "0 rows are in flight already: try again")


REGION = {"like": [{"key": NAMES[0], "box": [0, 0, 0.5, 1]}]}


@pytest.mark.parametrize(
    ("path", "costly", "kind"),
    [
        ("/v1/search", REGION, "searches by region"),
        ("/v1/encode", REGION, "searches by region"),
        ("/v1/search", b"an image", "searches by file"),
        ("/v1/encode", b"an image", "searches by file"),
        ("/v1/search", {"like": [{"id": 1}, {"id": 2}]}, "ordered searches"),
        ("/v1/search", {"like": [{"id": 1}], "unlike": [{"id": 2}]}, "ordered searches"),
        ("/v1/search", {"key": NAMES[0], "where": {"a": ["b"]}}, "ordered searches"),
        ("/v1/search", {"key": NAMES[0], "after": {"distance": 1, "id": 1}}, "ordered searches"),
        ("/v1/search", {"key": NAMES[0], "version": "00000001-00000000"}, "ordered searches"),
        ("/v1/search", {"key": NAMES[0], "k": 201}, "ordered searches"),
        ("/v1/search", {"key": NAMES[0], "k": 1001}, "long searches"),
        ("/v1/search", {"like": [{"id": 1}, {"id": 2}], "k": 1001}, "long searches"),
    ],
)
def test_searches_that_cost_much_leave_the_places_of_others_free(web, monkeypatch, path, costly, kind):
    monkeypatch.setattr(places, "MOST_AT_ONCE", {"searches": 1, kind: 0})

    async def found(*_):
        return SimpleNamespace(to_dict=dict) if path == "/v1/encode" else {}

    web.searches = SimpleNamespace(answer=found, encode=found)
    status, body = asyncio.run(asked(web, path, {"key": NAMES[0], **({} if path == "/v1/encode" else {"k": 200})}))
    assert status == 200, body
    status, body = asyncio.run(asked(web, path, costly))
    assert (status, json.loads(body)["detail"]) == (503, f"0 {kind} are in flight already: try again")


def test_a_key_with_a_line_break_is_that_of_its_own_picture(tmp_path):
    for shade, name in enumerate(("a.png", "a.png\n", "b\nc.png")):
        Image.new("RGB", (9, 9), (100 * shade,) * 3).save(tmp_path / name, "PNG")
    web = Web(WebSettings(triton="127.0.0.1:1", images=tmp_path, cache=tmp_path / "cache"))
    for kind in ("images", "thumbnails"):
        shades = []
        for name in ("a.png", "a.png\n", "b\nc.png"):
            status, picture = asyncio.run(asked(web, f"/v1/{kind}/{name}"))
            assert status == 200, (kind, name)
            shades.append(Image.open(io.BytesIO(picture)).getpixel((0, 0))[0])
        assert shades == [0, 100, 200]
