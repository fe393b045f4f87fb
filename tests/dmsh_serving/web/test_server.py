"""The page's own server: TLS, names, a client that goes away."""

import contextlib
import socket
import ssl
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

import pytest
from breakable import Breakable
from web_world import IMAGES, ask, png

from dmsh_serving.errors import InputError
from dmsh_serving.web import server
from dmsh_serving.web.settings import WebSettings

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate and its key, as options of a page."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=search.example"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"tls_cert": cert, "tls_key": key}


def test_it_speaks_https_and_answers_to_its_name(web_world, web_triton, certificate):
    options = {"host": "0.0.0.0", "names": ("search.example",), **certificate}
    with web_world.page(web_triton.url, **options) as page:
        assert page.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=certificate["tls_cert"])
        context.check_hostname = False
        for name, status in (("search.example", 200), ("other.example", 421)):
            request = urllib.request.Request(page.url, headers={"Host": name})
            try:
                with urllib.request.urlopen(request, context=context, timeout=10) as answer:
                    assert answer.status == status
            except urllib.error.HTTPError as error:
                assert error.code == status  # noqa: PT017


def test_a_connection_that_does_not_shake_hands_is_closed(web_world, certificate, monkeypatch):
    monkeypatch.setattr(server, "_HANDSHAKE_SECONDS", 0.2)
    with web_world.page("127.0.0.1:1", **certificate) as page:
        target = urlsplit(page.url)
        with socket.create_connection((target.hostname, target.port), timeout=30) as client:
            assert client.recv(1) == b""


def test_what_is_no_http_fills_no_log(web_world, capfd):
    with web_world.page("127.0.0.1:1") as page:
        target = urlsplit(page.url)
        for said in (
            b"X\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ):
            with socket.create_connection((target.hostname, target.port), timeout=30) as client:
                client.sendall(said)
                assert client.recv(100).startswith(b"HTTP/1.1 ")
    assert capfd.readouterr().err == ""


def test_requests_that_do_not_end_before_the_page_does_fill_no_log(web_world, monkeypatch, capfd):
    monkeypatch.setattr(server, "_STOP_SECONDS", 1)
    with contextlib.ExitStack() as clients, web_world.page("127.0.0.1:1") as page:
        target = urlsplit(page.url)
        head = f"POST /v1/search?k=1 HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: image/png\r\n"
        for _ in range(5):
            client = clients.enter_context(socket.create_connection((target.hostname, target.port), timeout=30))
            client.sendall(f"{head}Content-Length: 1000\r\n\r\nX".encode())
        eventually(lambda: len(page._server.server_state.tasks) == 5)
    assert "Traceback" not in capfd.readouterr().err


def test_others_are_let_in_only_on_purpose(tmp_path):
    given = {"triton": "x:1", "images": tmp_path, "cache": tmp_path, "host": "0.0.0.0"}
    with pytest.raises(InputError, match="or --insecure if the network is yours alone"):
        WebSettings(**given)
    assert WebSettings(**given, insecure=True).scheme == "http"


def test_what_a_client_abandons_keeps_its_place_until_triton_is_done_with_it(web_world, web_triton):
    way = Breakable(web_triton.url)
    with web_world.page(way.url, timeout=20) as page:
        assert ask(page, "/v1/search?k=1", png(IMAGES[0])).status == 200
        application = page._server.config.app
        way.hold()
        target = urlsplit(page.url)
        body = png(IMAGES[0])
        head = f"POST /v1/search?k=1 HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: image/png\r\n"
        with socket.create_connection((target.hostname, target.port)) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            eventually(lambda: in_flight(application) == 1)
        time.sleep(0.5)
        assert in_flight(application) == 1
        way.cut()
        eventually(lambda: in_flight(application) == 0)


def in_flight(application):
    (route,) = [route for route in application.routes if route.path == "/v1/search"]
    return route.endpoint.__self__._places.taken.total()


def eventually(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_answer_in_time_is_504_and_no_server_503(web_world, web_triton):
    way = Breakable(web_triton.url)
    with web_world.page(way.url, timeout=2) as page:
        assert ask(page, "/v1/search?k=1", png(IMAGES[0])).status == 200
        way.hold()
        answer = ask(page, "/v1/search?k=1", png(IMAGES[0]))
        assert (answer.status, answer.json()["detail"]) == (504, f"the Triton at {way.url} did not answer within 2 s")
        way.cut()
        answer = ask(page, "/v1/search?k=1", png(IMAGES[0]))
        assert answer.status == 503
        assert answer.headers["retry-after"] == "2"


def test_the_head_of_a_request_is_bounded(web_page):
    parts = urlsplit(web_page.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it may close before it has read all
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n")
        try:
            status = connection.recv(64).split(b" ")[1:2]
        except ConnectionError:
            status = []
    assert status in ([], [b"400"])
