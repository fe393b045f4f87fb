"""The ranker of Triton over a gallery in ClickHouse: the same repository, another parameter."""

import dataclasses
import sys
import types

import clickhouse_world
import numpy as np
import pytest
from clickhouse_world import F

from dmsh_serving import gallery
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.contract import CODE, FILTER, GALLERY_VERSION, IDS, KEYS, RADIUS, K
from dmsh_serving.errors import UnavailableError
from dmsh_serving.triton.backend import respond
from dmsh_serving.triton.repository import repository_texts
from dmsh_serving.triton.served_config import ranked_gallery
from dmsh_serving.triton.services import RankerService, Settings
from dmsh_serving.triton.spec import RepositorySpec

pytest.importorskip("chdb")


@pytest.fixture
def service(tmp_path):
    codes = uniform_codes(300, 64, 1)
    gallery.build(tmp_path / "g", codes, None, [f"k{row}" for row in range(300)], bits=64, fingerprint=F)
    address = clickhouse_world.address()
    version, _ = push(source_of_gallery(tmp_path / "g", gallery.open_current(tmp_path / "g")), address)
    settings = Settings(tmp_path, tmp_path, {"gallery": str(address), "bits": "64", "fingerprint": F, "threads": "1"})
    opened = RankerService.open(settings)
    yield opened, version, gallery.open_current(tmp_path / "g"), codes
    opened.close()


def test_requests_are_answered_from_the_published_version(service):
    ranker, version, local, codes = service
    even = np.tile(np.arange(0, 300, 2), (2, 1))
    ask = {CODE: codes[:2], K: np.full((2, 1), 20), RADIUS: np.full((2, 1), 30), FILTER: even}
    (answer,) = ranker.answer([ask])
    expected = local.search(codes[:2], 20, radius=30, allowed=np.arange(0, 300, 2))
    np.testing.assert_array_equal(answer[IDS], expected.ids)
    assert answer[KEYS].ravel().tolist() == local.keys_of(expected.rows)
    assert answer[GALLERY_VERSION].ravel().tolist() == [version.version] * 2


def test_a_repository_names_the_address_as_it_is(tmp_path):
    address = dataclasses.replace(clickhouse_world.address(), folder=None, host="db.example.org", cluster="main")
    pytest.importorskip("tritonclient")
    texts = repository_texts(tmp_path / "repository", RepositorySpec(address, 64, 32, F))
    for name, text in texts.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(text)
    assert ranked_gallery(tmp_path / "repository") == str(address)


def test_a_database_that_is_down_is_unavailable_for_every_request_and_tells_no_path(monkeypatch):
    class Error:
        UNAVAILABLE, INVALID_ARG, INTERNAL = "UNAVAILABLE", "INVALID_ARG", "INTERNAL"

        def __init__(self, message, code):
            self.message, self.code = message, code

    utils = types.ModuleType("triton_python_backend_utils")
    utils.TritonError, utils.InferenceResponse = Error, lambda error=None: error
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def answer(requests):
        raise UnavailableError("clickhouse://secret-host/a/b does not answer")

    class Request:
        def inputs(self):
            return []

        def request_id(self):
            return "mine"

    answers = respond([Request(), Request()], answer)
    assert [each.code for each in answers] == ["UNAVAILABLE"] * 2
    assert answers[0].message == "the gallery's database does not answer: try again"
