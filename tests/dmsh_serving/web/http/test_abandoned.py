"""A client that goes away ends its work."""

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest
from PIL import Image

from dmsh_serving.web.app import Web
from dmsh_serving.web.http import places
from dmsh_serving.web.http.abandoned import AbandonedError, in_thread, to_the_end, unless_abandoned
from dmsh_serving.web.http.problems import ProblemError
from dmsh_serving.web.settings import WebSettings


class Client:
    """A request whose client goes away after so many seconds, or once something has begun."""

    def __init__(self, seconds=0, until=None):
        self.seconds, self.until = seconds, until

    async def receive(self):
        await asyncio.sleep(self.seconds)
        if self.until is not None:
            await until(self.until)
        return {"type": "http.disconnect"}


def test_an_answer_in_time_is_given_and_an_error_raised():
    async def work():
        return 5

    async def fail():
        raise ValueError("no")

    assert asyncio.run(unless_abandoned(Client(60), work())) == 5
    with pytest.raises(ValueError, match="no"):
        asyncio.run(unless_abandoned(Client(60), fail()))


class Body:
    """What a request brought."""


@pytest.mark.parametrize("way", ["thread", "to the end", "unless abandoned", "place"])
def test_work_that_fails_keeps_nothing_of_its_request_in_memory(way):
    body = Body()
    kept = weakref.ref(body)

    def fail(held):
        raise ValueError("no")

    async def work(held):
        fail(held)

    ways = {
        "thread": lambda held: in_thread(fail, held),
        "to the end": lambda held: to_the_end(work(held)),
        "unless abandoned": lambda held: unless_abandoned(Client(60), work(held)),
        "place": lambda held: places.Places(60).work(Client(60), partial(work, held), "searches"),
    }

    async def asked(held):
        with pytest.raises(ValueError, match="no"):
            await ways[way](held)

    gc.collect()
    gc.disable()
    try:
        asking = asked(body)
        del body
        asyncio.run(asking)
        del asking
        assert kept() is None
    finally:
        gc.enable()


def test_work_that_nobody_waits_for_is_cancelled():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(AbandonedError):
        asyncio.run(unless_abandoned(Client(0.01), work()))
    assert ended == ["cancelled"]


def test_a_caller_that_is_cancelled_takes_its_work_along():
    ended = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("ended")

    async def caller():
        task = asyncio.ensure_future(unless_abandoned(Client(60), work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(caller())
    assert ended == ["ended"]


class Blocking:
    """Work for a thread, which goes on until it is let go."""

    def __init__(self):
        self.begun, self.let_go, self.done = threading.Event(), threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.let_go.wait(60)
        self.done.set()


async def until(event):
    while not event.is_set():
        await asyncio.sleep(0.001)


def test_what_a_cancelled_caller_holds_is_held_until_its_thread_is_done():
    work = Blocking()

    async def caller(slot):
        async with slot:
            await in_thread(work)

    async def played():
        slot = asyncio.Semaphore(1)
        calling = asyncio.ensure_future(caller(slot))
        await until(work.begun)
        for _ in range(3):  # however often
            calling.cancel()
            await asyncio.sleep(0.01)
            assert slot.locked()
        work.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert work.done.is_set()
        assert not slot.locked()

    asyncio.run(played())


def test_a_thread_is_told_to_stop_and_one_that_waits_for_its_turn_never_begins():
    ran = []

    async def played():
        first, stop = Blocking(), threading.Event()
        busy = [asyncio.ensure_future(in_thread(first)) for _ in range(40)]  # all threads of the pool
        await until(first.begun)
        waiting = asyncio.ensure_future(in_thread(ran.append, 1, stop=stop))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting  # while no thread is free
        assert stop.is_set()
        first.let_go.set()
        await asyncio.gather(*busy)

    asyncio.run(played())
    assert ran == []


def test_an_error_that_nobody_waits_for_any_more_is_not_logged(caplog):
    work = Blocking()

    def fail():
        work()
        raise ValueError("no")

    async def played():
        for caller in (in_thread(fail), unless_abandoned(Client(60), in_thread(fail))):
            work.begun.clear()
            work.let_go.clear()
            calling = asyncio.ensure_future(caller)
            await until(work.begun)
            calling.cancel()
            await asyncio.sleep(0.01)
            work.let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await asyncio.sleep(0.01)
            gc.collect()

    asyncio.run(played())
    gc.collect()
    assert caplog.messages == []


def page(folder):
    (folder / "images").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "images" / "a.png")
    return Web(WebSettings(triton="127.0.0.1:1", images=folder / "images", cache=folder / "cache"))


async def status_for_one_who_is_gone(web, method, path, *sent):
    """Ask ``path`` with the messages ``sent``, then go away; return the status that nobody reads."""
    messages, told = [*sent, {"type": "http.disconnect"}], {}

    async def receive():
        return messages.pop(0)

    async def send(message):
        told.update(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    await web.app()(scope, receive, send)
    return told["status"]


def test_an_upload_that_is_broken_off_is_no_fault(tmp_path):
    half = {"type": "http.request", "body": b"half of", "more_body": True}
    assert asyncio.run(status_for_one_who_is_gone(page(tmp_path), "POST", "/v1/search", half)) == 499


@pytest.mark.parametrize("kind", ["images", "thumbnails"])
def test_a_picture_that_nobody_waits_for_is_not_made_and_only_so_many_wait(tmp_path, monkeypatch, kind):
    web = page(tmp_path)
    asked = {"type": "http.request", "body": b"", "more_body": False}

    async def played():
        web._rendering = asyncio.Semaphore(0)  # every CPU is at work
        async with asyncio.timeout(60):
            assert await status_for_one_who_is_gone(web, "GET", f"/v1/{kind}/a.png", asked) == 499
            monkeypatch.setattr(places, "MOST_AT_ONCE", {"pictures": 0, "views": 0})
            assert await status_for_one_who_is_gone(web, "GET", f"/v1/{kind}/a.png", asked) == 503

    asyncio.run(played())


def test_an_abandoned_search_keeps_its_place_until_its_thread_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "MOST_AT_ONCE", {"searches": 2, "examinations": 1})
    (tmp_path / "images").mkdir()
    web = Web(WebSettings(triton="127.0.0.1:1", images=tmp_path / "images", cache=tmp_path / "cache"))
    threads = [Blocking(), Blocking()]

    async def played():
        working = [web._working(Client(until=each.begun), partial(in_thread, each), "searches") for each in threads]
        abandoned = [asyncio.ensure_future(each) for each in working]
        for each in threads:
            await until(each.begun)
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in abandoned)
        with pytest.raises(ProblemError, match="2 searches are in flight already"):
            await web._working(Client(60), lambda: in_thread(int), "searches")
        # What is examined has places of its own.
        assert (await web._working(Client(60), lambda: in_thread(int), "examinations")).body == b"0"
        for each in threads:
            each.let_go.set()
        for each in abandoned:
            with pytest.raises(AbandonedError):
                await each
        assert (await web._working(Client(60), lambda: in_thread(int), "searches")).body == b"0"

    asyncio.run(played())
