"""What many searches at once wait for, and how much of it is done or kept at once: over a Triton made of numpy."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.datastructures import QueryParams
from web_steps import CODES, LIKE, SPACE, Steps, answer

from dmsh_serving import gallery
from dmsh_serving.gallery.keys import Keys
from dmsh_serving.web import answers, app, orders, search
from dmsh_serving.web.codes import collection
from dmsh_serving.web.codes.collection import GalleryFolder
from dmsh_serving.web.http import places
from dmsh_serving.web.http.abandoned import in_thread
from dmsh_serving.web.http.problems import ProblemError
from dmsh_serving.web.http.questions import Example, Question
from dmsh_serving.web.pictures.originals import Originals
from dmsh_serving.web.search import Searches
from dmsh_serving.web.settings import WebSettings


def test_a_slow_disk_holds_no_answer_for_long_and_a_short_one_waits_for_no_long_one(originals, monkeypatch):
    asked, stopped = [], []

    def read_sizes(keys, stop):
        asked.append(len(keys))
        if len(keys) > answers.SHORT_ANSWER:
            stopped.append(stop.wait(60))

    monkeypatch.setattr(originals, "are_sized", lambda keys: False)
    monkeypatch.setattr(originals, "read_sizes", read_sizes)
    monkeypatch.setattr(answers, "_SIZING_SECONDS", 2)
    searches = Searches(Steps(), originals, None)

    async def several():
        long = [asyncio.ensure_future(searches.answer(Question(like=LIKE, k=300))) for _ in range(3)]
        while len(asked) < 2:
            await asyncio.sleep(0.01)
        short = await searches.answer(Question(like=LIKE, k=3))
        assert not any(each.done() for each in long)
        return short, *await asyncio.gather(*long)

    short, *long = asyncio.run(several())
    assert asked[:3] == [300, 300, 3]  # the third long one has its time without a turn
    assert all(stopped)
    assert short["images"] == long[0]["images"][:3]
    assert [len(each["images"]) for each in long] == [300] * 3


def test_headers_of_images_are_read_by_few_of_the_threads_that_all_share(originals, monkeypatch):
    reading, most = [], []

    def read_sizes(keys, stop):
        reading.append(keys)
        most.append(len(reading))
        time.sleep(0.05)
        reading.pop()

    monkeypatch.setattr(originals, "are_sized", lambda keys: False)
    monkeypatch.setattr(originals, "read_sizes", read_sizes)
    searches = Searches(Steps(), originals, None)

    async def several():
        await asyncio.gather(*(searches.answer(Question(like=LIKE, k=3)) for _ in range(8)))

    asyncio.run(several())
    assert len(most) == 8
    assert max(most) <= 2


def test_of_a_long_question_the_order_alone_is_kept(originals, tmp_path):
    gallery.build(tmp_path / "gallery", CODES, None, [f"{number}.png" for number in range(300)], **SPACE)
    searches = Searches(Steps(), originals, GalleryFolder(tmp_path / "gallery"))
    for many in (1, 2, 100_000):
        assert answer(searches, like=LIKE * 2, k=1, ids=tuple(range(7, 7 + many)))["total"] == min(many, 293)
    assert len(searches._orders._kept) == 3
    assert max(len(repr(name)) for name in searches._orders._kept) < 1000


def test_searches_do_not_wait_for_a_folder_that_takes_long_to_read(originals, monkeypatch):
    begun, let_go, reads = threading.Event(), threading.Event(), []

    def refresh():
        reads.append(1)
        begun.set()
        return let_go.wait(60)

    monkeypatch.setattr(originals, "refresh", refresh)
    monkeypatch.setattr(answers, "_LOOKING_SECONDS", 0.01)
    searches = Searches(Steps(), originals, None)

    async def played():
        answers = [searches.answer(Question(like=LIKE, k=1)) for _ in range(5)]
        found = await asyncio.gather(*answers)
        assert [each["images"][0]["id"] for each in found] == [5] * 5
        assert begun.wait(60)
        assert searches._teller._versions == set()
        let_go.set()
        await searches._teller._looking
        assert len(searches._teller._versions) == 1

    asyncio.run(played())
    assert len(reads) == 1


def test_orders_that_are_kept_are_bounded(originals, tmp_path, monkeypatch):
    gallery.build(tmp_path / "gallery", CODES, None, None, **SPACE)
    searches = Searches(Steps(), originals, GalleryFolder(tmp_path / "gallery"))
    monkeypatch.setattr(orders, "MOST_BYTES", 3 * 300 * 20)
    for number in range(10):
        answer(searches, like=(*LIKE, Example(number=number)), k=1)
    assert len(searches._orders._kept) == 3
    monkeypatch.setattr(orders, "MOST_KEPT", 2)
    answer(searches, like=(*LIKE, Example(number=10)), k=1)
    assert len(searches._orders._kept) == 2


class AtOnce:
    """Work that counts how often it is done at once."""

    def __init__(self, answer):
        self.answer, self.now, self.most, self.lock = answer, 0, 0, threading.Lock()

    def __call__(self, *asked):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1
        return self.answer(*asked)


def test_only_as_many_orders_are_made_at_once_as_there_are_cpus(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(orders, "available_cpus", lambda: 2)
    ordering = AtOnce(orders.ranking_of)
    monkeypatch.setattr(orders, "ranking_of", ordering)
    gallery.build(tmp_path / "gallery", CODES, None, None, **SPACE)
    searches = Searches(Steps(), originals, GalleryFolder(tmp_path / "gallery"))

    async def together():
        questions = [Question(like=(*LIKE, Example(number=number)), k=1) for number in range(8)]
        await asyncio.gather(*map(searches.answer, questions))

    asyncio.run(together())
    assert ordering.most == 2


def test_versions_are_opened_one_at_a_time_and_who_waits_takes_no_thread(originals, tmp_path, monkeypatch):
    versions = [gallery.build(tmp_path / "gallery", CODES[:280], None, None, **SPACE).version]
    for row in (280, 281, 282):
        added = gallery.append(tmp_path / "gallery", CODES[row : row + 1], None, None, fingerprint=SPACE["fingerprint"])
        versions.append(added.version)
    monkeypatch.setattr(collection, "VERSIONS_HELD", 2)
    folder = GalleryFolder(tmp_path / "gallery")
    opening = AtOnce(folder.at)
    monkeypatch.setattr(folder, "at", opening)
    searches = Searches(Steps(), originals, folder)

    async def together():
        old = [versions[0], versions[2]] * 3  # there is room for one of them beside the current one
        asked = [Question(like=(Example(number=5),) * 9, version=version) for version in old]
        answers = await asyncio.gather(*map(searches.answer, asked))
        assert [each["gallery_version"] for each in answers] == old

    asyncio.run(together())
    assert opening.most == 1


def test_who_asks_for_keys_of_a_version_that_is_opened_anew_takes_no_thread(originals, tmp_path, monkeypatch):
    keys = [f"{number}.png" for number in range(300)]
    version = gallery.build(tmp_path / "gallery", CODES, None, keys, **SPACE).version
    searches = Searches(Steps(), originals, GalleryFolder(tmp_path / "gallery"))
    begun, let_go, each_key = threading.Event(), threading.Event(), Keys.__iter__

    def slow(self):
        begun.set()
        assert let_go.wait(120)
        return each_key(self)

    monkeypatch.setattr(Keys, "__iter__", slow)

    async def together():
        asked = Question(like=(Example(key="5.png"),), version=version)
        answers = [asyncio.ensure_future(searches.answer(asked)) for _ in range(60)]  # there are 40 threads
        try:
            async with asyncio.timeout(60):
                while not begun.is_set():
                    await asyncio.sleep(0.001)
                for _ in range(100):
                    await in_thread(int)
        finally:
            let_go.set()
        for each in await asyncio.gather(*answers):
            assert each["images"][0]["id"] == 5

    asyncio.run(together())


def test_only_so_many_files_that_keys_name_are_encoded_at_once(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MOST_FROM_FOLDER", 2)
    (tmp_path / "images" / "new.png").write_bytes(CODES[5].tobytes())
    originals = Originals(tmp_path / "images")
    gallery.build(tmp_path / "gallery", CODES, None, None, **SPACE)
    steps, let_go = Steps(), asyncio.Event()

    async def decode(file):
        steps.decoded.append(file)
        await let_go.wait()
        return np.frombuffer(file, np.uint8)

    monkeypatch.setattr(steps, "decode", decode)
    searches = Searches(steps, originals, GalleryFolder(tmp_path / "gallery"))
    new = Question(like=(Example(key="new.png"),) * 3)

    async def together():
        async with asyncio.timeout(60):
            first = [asyncio.ensure_future(searches.answer(new)) for _ in range(2)]
            while len(steps.decoded) < 2:
                await asyncio.sleep(0.001)
            with pytest.raises(ProblemError, match="2 files of the folder are being encoded: try again") as refused:
                await searches.answer(new)
            assert refused.value.status == 503
            assert (await searches.answer(Question(like=(Example(number=5),))))["images"]
            first[0].cancel()
            while not first[0].done():
                await asyncio.sleep(0.001)
            first.append(asyncio.ensure_future(searches.answer(new)))
            let_go.set()
            assert len(await asyncio.gather(*first[1:])) == 2
            assert searches._from_folder == 0

    asyncio.run(together())


def test_only_as_many_filters_are_counted_at_once_as_there_are_cpus(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "available_cpus", lambda: 2)
    gallery.build(tmp_path / "gallery", CODES, None, None, **SPACE)
    (tmp_path / "table.csv").write_text("key,colour\n")
    given = {"gallery": tmp_path / "gallery", "metadata": tmp_path / "table.csv", "cache": tmp_path / "cache"}
    web = app.Web(WebSettings(triton="127.0.0.1:1", images=tmp_path / "images", **given))
    counting = AtOnce(web.metadata.counts)
    monkeypatch.setattr(web.metadata, "counts", counting)
    monkeypatch.setattr(places, "MOST_AT_ONCE", {"facets": 8})  # beside the places of searches

    async def together():
        request = SimpleNamespace(query_params=QueryParams(), receive=asyncio.Event().wait)
        await asyncio.gather(*(web.facets(request) for _ in range(8)))

    asyncio.run(together())
    assert counting.most == 2
