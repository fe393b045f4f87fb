"""What goes over the wire, and the errors by their names; tests/live has a real Triton."""

import threading

import grpc
import numpy as np
import pytest
from fake_triton import SIZE, FakeTriton

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.load.measure import Measuring, measure
from dmsh_serving.load.send import Closed, Open
from dmsh_serving.load.triton import TritonTarget, parse_target

SHORT = Measuring(warm_up_seconds=0.0, window_seconds=0.1, most_windows=4)


@pytest.fixture
def server():
    with FakeTriton() as running:
        yield running


def target(server, model="dmsh_search", content=None, **options):
    return TritonTarget(server.url, model, content, **{"batch": 1, "k": 3, "timeout": 5.0, **options})


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", "dmsh_search"),
        ("127.0.0.1:8001/dmsh_encoder", "127.0.0.1:8001", "dmsh_encoder"),
        ("triton://example.org:9/x", "example.org:9", "x"),
    ],
)
def test_a_target_is_a_server_and_a_model(text, url, model):
    assert parse_target(text, "dmsh_search") == (url, model)


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", ":8001", "host:port/x", "host:1/a/b"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(InputError, match="name a server as host:port"):
        parse_target(text, "dmsh_search")


@pytest.mark.parametrize("load", [Closed(2), Open(100, "fixed")])
def test_a_load_on_a_server_is_measured_with_the_servers_own_split(server, load):
    images = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    with target(server, content=images, batch=2) as opened:
        assert opened.distinct_requests == 5
        found = measure(opened, load, batch=2, measuring=SHORT, counts=opened.counts)
    assert not found.errors
    assert len(found.seconds) > 20
    assert set(server.rows) == {2}
    (model,) = found.models
    assert (model.rows_per_call, model.total_ms, model.queue_ms, model.compute_ms) == (2, 3, 1, 2)


def test_every_request_is_sent_in_turn(server):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((SIZE, SIZE, 3), np.uint8)
    seen, answer = [], server._answer

    def noted(request):
        seen.append(request.raw_input_contents[0][0])
        return answer(request)

    server._answer = noted
    with target(server, content=images) as opened:
        for _ in range(6):
            opened.call()
    assert seen == [0, *[0, 1, 2] * 2], "the first one asks whether the server answers at all"


@pytest.mark.parametrize("way", ["call", "start"])
def test_a_refusal_is_counted_by_the_name_of_its_status(server, way):
    with target(server) as opened:
        server.refusals = [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")]
        if way == "call":
            kinds = [opened.call(), opened.call()]
        else:
            kinds, ended = [], threading.Semaphore(0)
            for _ in range(2):
                opened.start(lambda kind: (kinds.append(kind), ended.release()))
                ended.acquire()
    assert kinds == ["UNAVAILABLE", None]


def test_a_request_that_takes_too_long_is_counted_too(server):
    with target(server, timeout=1) as opened:
        server.seconds = 2
        assert opened.call() == "DEADLINE_EXCEEDED"


def test_files_are_sent_as_they_are(server):
    sent, answer = [], server._answer
    server._answer = lambda request: sent.append(request) or answer(request)
    with target(server, "dmsh_search_file", [b"one", b"seven"], batch=2):
        pass
    assert sent[0].inputs[0].shape == [2, 1]
    assert sent[0].raw_input_contents[0] == b"\3\0\0\0one\5\0\0\0seven"
    assert np.frombuffer(sent[0].raw_input_contents[1], np.int64).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("model", "content", "options", "message"),
    [
        ("dmsh_search_file", None, {}, "takes image files: give --images FOLDER"),
        ("dmsh_search", [b"file"], {}, r"takes uint8 \[4, 4, 3\]"),
        ("dmsh_search", np.zeros((2, 5, 5, 3), np.uint8), {}, r"takes uint8 \[4, 4, 3\]"),
        ("dmsh_search", None, {"batch": 5}, "--batch 5 is more than dmsh_search takes, 4"),
        ("other", None, {}, "takes none of image, file and code"),
    ],
)
def test_what_a_model_does_not_take_is_refused_before_the_load(server, model, content, options, message):
    with pytest.raises(InputError, match=message):
        target(server, model, content, **options)


@pytest.mark.parametrize("shape", [[], [0, 4, 3], [-1, -1, 3], [2**31, 2**31, 3], [1200, 1200, 3]])
def test_a_model_whose_images_have_no_size_that_could_be_sent_is_refused(server, shape):
    server.shapes["odd"] = shape
    with pytest.raises(InputError, match="odd takes image of shape"):
        target(server, "odd")
    with pytest.raises(InputError, match="odd takes"):
        target(server, "odd", np.zeros((2, 4, 4, 3), np.uint8))


def test_no_server_and_a_refusing_one_are_errors_of_one_line(server):
    server.refusals = [(grpc.StatusCode.INVALID_ARGUMENT, "k = 3 is too many")]
    with pytest.raises(InputError, match="k = 3 is too many"):
        target(server)
    with pytest.raises(MissingError, match="no Triton at"):
        TritonTarget("127.0.0.1:1", "dmsh_search", None, batch=1, k=3, timeout=2.0)
