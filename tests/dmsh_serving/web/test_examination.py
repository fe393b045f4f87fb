"""What was examined once is there for everybody, found or refused, whatever else is examined meanwhile."""

import asyncio

import numpy as np
import pytest

from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import InputError
from dmsh_serving.web.app import Web
from dmsh_serving.web.codes import care
from dmsh_serving.web.examination import Examinations
from dmsh_serving.web.http import places
from dmsh_serving.web.http.problems import ProblemError
from dmsh_serving.web.settings import WebSettings

CODES = uniform_codes(40, 64, 0)
CODES[1] = CODES[0] ^ np.eye(8, dtype=np.uint8)[0]


class Request:
    """A request of somebody who waits."""

    query_params = {"radius": "1"}  # noqa: RUF012

    async def receive(self):
        await asyncio.sleep(600)


@pytest.fixture
def web(tmp_path):
    (tmp_path / "images").mkdir()
    gallery.build(tmp_path / "gallery", CODES, None, None, bits=64, fingerprint="ab" * 32)
    given = {"images": tmp_path / "images", "gallery": tmp_path / "gallery", "cache": tmp_path / "cache"}
    opened = Web(WebSettings(triton="127.0.0.1:1", **given))
    opened.examinations = Examinations(opened.gallery, opened.originals)  # as when it begins to serve
    return opened


def test_what_was_found_needs_no_place(web, monkeypatch):
    async def looked_at():
        found = await web.duplicates(Request())
        monkeypatch.setattr(places, "MOST_AT_ONCE", {"examinations": 0})
        assert (await web.duplicates(Request())).body == found.body
        with pytest.raises(ProblemError, match="0 examinations are in flight already"):
            await web.shared(Request())
        return found

    assert b'"groups":1,"images":2' in asyncio.run(looked_at()).body


def test_what_is_refused_is_not_examined_again_until_the_gallery_is_another(web, tmp_path, monkeypatch):
    monkeypatch.setattr(care, "MOST_COMPARED", 3)
    examined, tried = care.duplicates, []
    monkeypatch.setattr(care, "duplicates", lambda *asked, **how: tried.append(asked) or examined(*asked, **how))

    async def looked_at():
        for _ in range(2):
            with pytest.raises(InputError, match="different codes"):
                await web.duplicates(Request())

    asyncio.run(looked_at())
    assert len(tried) == 1
    gallery.remove(tmp_path / "gallery", np.arange(2))
    asyncio.run(looked_at())
    assert len(tried) == 2
