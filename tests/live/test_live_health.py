"""A server seen from outside: ready and right or not, what it does, what its log names."""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from live_world import CODES, IMAGES, World, png

from dmsh_serving import gallery
from dmsh_serving.client import SearchClient
from dmsh_serving.errors import InputError
from dmsh_serving.triton.server.launcher import free_ports
from dmsh_serving.triton.server.status import _asked
from dmsh_serving.triton.server.tracing import Tracing

TOOL = Path(sys.executable).with_name("dmsh-serve")


def tool(*arguments):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_server_that_is_ready_and_right_passes(world, server, tmp_path):
    version = world.publish(200)
    deadline = time.monotonic() + 60
    while version not in tool("check", server.url)[1]:
        assert time.monotonic() < deadline
    arguments = ["--gallery", world.gallery, "--version", version, "--fingerprint", "abab"]
    code, said, error = tool("check", server.url, *arguments, "--json", tmp_path / "found.json")
    assert (code, error) == (0, "")
    assert f"is ready: gallery {version}, code space abababababab, its known code" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["known_code"], found["gallery_version"], found["bits"]) == (True, version, 64)


def test_what_is_not_as_it_must_be_fails_with_the_reason(server, tmp_path):
    other = tmp_path / "other"
    gallery.build(other, CODES[:50], None, None, bits=64, fingerprint="ab" * 32)
    for arguments, said in (
        (["--version", "00000001-00000000"], "answers, not 00000001-00000000"),
        (["--fingerprint", "cd"], "it serves code space abababababab, not cd"),
        (["--gallery", other], f"{other} is at"),
        (["--budget", "0.001"], "0.001"),
    ):
        code, out, error = tool("check", server.url, *arguments)
        assert (code, out) == (1, ""), arguments
        assert error.startswith(f"error: {server.url} is not ready: ")
        assert said in error
    (port,) = free_ports("127.0.0.1", 1)
    assert tool("check", f"127.0.0.1:{port}")[0] == 1


def test_a_known_code_that_comes_out_wrong_fails(tmp_path):
    world = World.make(tmp_path, 20)
    config = world.repository / "dmsh_decode" / "config.pbtxt"
    code = CODES[0].tobytes().hex()
    wrong = (CODES[0] ^ np.array([0, 0, 0, 0, 0, 0, 0, 5], np.uint8)).tobytes().hex()
    assert code in config.read_text()
    config.write_text(config.read_text().replace(code, wrong))
    with world.server() as server:
        status, _, error = tool("check", server.url)
    assert status == 1
    assert "2 of 64 bits of a known image's code are wrong" in error


def test_status_shows_what_a_server_does(server, tmp_path):
    with SearchClient(server.url) as client:
        client.search_files([png(IMAGES[7])], 5)
        with pytest.raises(InputError):
            client.search_files([b"none"], 5)
        with pytest.raises(InputError):
            client.search(IMAGES[:1], 0)
    deadline = time.monotonic() + 60
    while True:
        code, said, error = tool("status", server.grpc_port, "--json", tmp_path / "seen.json")
        assert (code, error) == (0, "")
        seen = json.loads((tmp_path / "seen.json").read_text())
        if {"decode: invalid", "rank: invalid"} <= seen["refused"].keys():
            break
        assert time.monotonic() < deadline
    assert (seen["ready"], seen["restarts"], seen["gallery"]["serving"]) == (True, 0, seen["gallery"]["wanted"])
    assert seen["gallery"]["looked_at_seconds_ago"] < 30
    assert seen["steps"]["rank"]["requests"] > 0
    assert seen["steps"]["decode"]["p50_ms"] > 0
    assert str(server.log_file) in said
    assert tool("status", "--http", server.http_url, "--metrics", server.metrics_url)[0] == 0
    assert tool("status", 1)[0] == 3


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what a collector of OpenTelemetry takes: (path, body)."""

    taken: list[tuple[str, bytes]]

    def do_POST(self):
        self.taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def collector():
    kind = type("OneCollector", (Collector,), {"taken": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", kind.taken
        server.shutdown()


@pytest.fixture(scope="module")
def watched(tmp_path_factory, collector):
    """A server that tells all that it can tell of its requests."""
    world = World.make(tmp_path_factory.mktemp("watched"), 20)
    host = "::1" if has_ipv6() else "127.0.0.1"
    with world.server(slow_seconds=0.0, log_json=True, tracing=Tracing(collector[0]), metrics_host=host) as server:
        yield server


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


def test_a_collector_gets_the_spans_of_every_model_that_a_request_goes_through(watched, collector):
    with SearchClient(watched.url) as client:
        client.search_files([png(IMAGES[7])], 5)
    names = [b"dmsh_search_file", b"dmsh_decode", b"dmsh_encoder", b"dmsh_ranker", client.last_request.encode()]
    deadline = time.monotonic() + 60
    while not all(any(name in body for _, body in collector[1]) for name in names):
        assert time.monotonic() < deadline, collector[1]
        time.sleep(0.1)
    assert {path for path, _ in collector[1]} == {"/v1/traces"}


def test_a_request_that_takes_long_is_named_in_the_log_by_the_id_of_its_client(watched):
    with SearchClient(watched.url) as client:
        client.search_files([png(IMAGES[7])], 5)
        deadline = time.monotonic() + 60
        while True:
            lines = [json.loads(line) for line in watched.log_file.read_text().splitlines()]
            slow = [line for line in lines if line.get("request") == client.last_request]
            if len(slow) == 3:
                break
            assert time.monotonic() < deadline, lines[-5:]
            time.sleep(0.05)
    assert {line["level"] for line in slow} == {"warning"}
    steps = sorted(line["message"].split("was slow: ")[1].split()[0] for line in slow)
    assert steps == ["decode", "encode", "rank"]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no loopback address of IPv6")
def test_metrics_are_read_at_an_address_of_ipv6(watched):
    assert "nv_inference_request_success" in _asked(watched.metrics_url, "/metrics")[1]


def test_triton_s_own_metrics_that_the_dashboard_asks_for_are_there(server):
    text = _asked(server.metrics_url, "/metrics")[1]
    counted = (
        "pending_request_count",
        "count",
        "exec_count",
        "queue_duration_us",
        "request_success",
        "request_failure",
    )
    for name in counted:
        assert f'nv_inference_{name}{{model="dmsh_ranker"' in text
