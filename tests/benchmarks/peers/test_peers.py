"""The comparison with FastAPI: the same answers, senders that tell errors, rates that stop at the budget."""

import contextlib
import http.server
import threading

import numpy as np
import pytest
from benchmarks.peers import __main__ as peers
from benchmarks.peers import server as fastapi_server
from benchmarks.peers.__main__ import Service
from benchmarks.peers.http_sender import HttpSender
from live_world import png
from starlette.testclient import TestClient

from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.load import measure as measuring
from dmsh_serving.load.measure import Measured
from dmsh_serving.load.send import Closed, Open


@pytest.fixture
def answering():
    """A server that answers 200 to "good" and 500 to anything else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if body == b"good" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_sender_tells_the_status_of_what_failed_and_goes_on(answering):
    sender = HttpSender(answering, "/search", [b"good", b"bad"], 5)
    assert [sender.call() for _ in range(4)] == [None, "500", None, "500"]
    ended, kinds = threading.Event(), []
    sender.start(lambda kind: (kinds.append(kind), ended.set()))
    assert ended.wait(5)
    assert kinds == [None]
    sender.close()


def test_no_server_is_an_error_and_no_exception():
    sender = HttpSender("127.0.0.1:1", "/search", [b"x"], 1)
    assert sender.call() == "ConnectionRefusedError"
    sender.close()


def test_the_hand_written_server_finds_what_the_oracle_finds(tmp_path):
    import tiny_model

    images = tiny_model.random_images(50)
    codes = tiny_model.codes_of(images)
    np.save(tmp_path / "codes.npy", codes)
    app = fastapi_server.app_of(tiny_model.write(tmp_path / "model.onnx"), tmp_path / "codes.npy", 1)
    answer = TestClient(app).post("/search", content=png(images[7])).json()
    distances, ids = search_oracle(codes[7:8], codes, 10)
    assert answer["distances"] == distances[0].tolist()
    assert answer["ids"][0] == ids[0, 0] == 7


@pytest.mark.parametrize(
    ("holds", "rate", "refused"),
    [(130, 50 * 1.25**4, 50 * 1.25**5), (11, 6.25 * 1.25**2, 6.25 * 1.25**3)],
    ids=["above the first rate", "below it"],
)
def test_the_highest_rate_whose_p99_is_in_the_budget_is_found(monkeypatch, holds, rate, refused):
    asked = []

    def measure(sender, load, **_):
        rate = 100.0 if isinstance(load, Closed) else load.rate
        asked.append(rate)
        ms = 10 if rate < holds else 500
        return Measured(load, 1, True, 10.0, np.full(int(rate * 10), ms / 1000), int(rate * 10))

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(peers, "memory_mib", lambda _: 5.0)

    found = peers.measured("it", lambda: contextlib.nullcontext((None, 1)), budget=100, seconds=0.1)
    assert found.requests_per_s == pytest.approx(rate, rel=0.03)
    assert (found.p99_ms, found.memory_mib) == (10, 5)
    assert asked[-1] == pytest.approx(refused)


def test_a_service_that_holds_no_rate_is_said_to_hold_none(monkeypatch):
    slow = Measured(Open(1.0), 1, True, 10.0, np.full(10, 0.5), 10)
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: slow)
    monkeypatch.setattr(peers, "memory_mib", lambda _: 5.0)
    found = peers.measured("it", lambda: contextlib.nullcontext((None, 1)), budget=100, seconds=0.1)
    assert (found.requests_per_s, found.p99_ms) == (0.0, float("inf"))


def test_the_table_is_against_pytorch():
    rows = peers.table([Service("a", 50, 1, 2, 3, 4), Service("torch", 20, 1, 2, 3, 4)])
    assert [row[-1] for row in rows] == ["x PyTorch", "2.50", "1.00"]
    assert len({len(row) for row in rows}) == 1
