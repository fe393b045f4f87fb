"""Connections that say nothing, half of it, or do not read what they are told, over a server of a few lines."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from dmsh_serving.web.http import connections
from dmsh_serving.web.http.connections import Connection

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG_REQUEST = REQUEST.replace(b"/ ", b"/long ")
HEAD_SECONDS = 2.0  # far longer than a request takes on a busy machine
LONG = 32 << 20  # bytes: beyond what the system holds of an answer that nobody reads


async def application(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        await asyncio.sleep(HEAD_SECONDS + 1)
    body = bytes(LONG) if scope["path"] == "/long" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", HEAD_SECONDS)
    config = uvicorn.Config(application, port=0, http=Connection, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield server
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture
def address(server):
    return server.servers[0].sockets[0].getsockname()


def closed(client):
    """Wait until the server has closed a connection, without an answer."""
    client.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""


def taken(client, count):
    """Return so many bytes of an answer."""
    client.settimeout(30)
    got = bytearray()
    while len(got) < count:
        part = client.recv(min(count - len(got), 1 << 20))
        assert part
        got += part
    return got


def read_long(client):
    client.sendall(LONG_REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += taken(client, 1)
    taken(client, LONG)


def answered(client, request=REQUEST):
    client.settimeout(30)
    client.sendall(request)
    got = b""
    while not got.endswith(b"ok"):
        part = client.recv(1000)
        assert part
        got += part


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_a_connection_that_does_not_say_what_it_wants_is_closed(address, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with socket.create_connection(address) as client:
        client.sendall(sent)
        closed(client)


def test_half_a_head_is_not_kept_open_by_ever_more_of_it(address, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with socket.create_connection(address) as client, contextlib.suppress(ConnectionError):
        client.settimeout(30)
        client.sendall(b"GET / HTTP/1.1\r\n")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            client.sendall(b"X: y\r\n")
            time.sleep(0.1)
        pytest.fail("it is still open")


@pytest.mark.parametrize(
    ("request_", "more"),
    [(REQUEST, b"GET / HTTP/1.1\r\n"), (REQUEST.replace(b"x\r", b"x\r\nContent-Length: 9\r"), b"1")],
)
def test_after_an_answer_neither_half_a_head_nor_half_a_body_is_waited_for(address, monkeypatch, request_, more):
    with socket.create_connection(address) as client:
        answered(client, request_)
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        client.sendall(more)
        closed(client)


def refused(client):
    """Return what a connection says before it is closed."""
    client.settimeout(30)
    got = bytearray()
    with contextlib.suppress(ConnectionError):  # what it had not read yet is thrown away
        while part := client.recv(1000):
            got += part
    return got.decode()


@pytest.mark.parametrize("head", [REQUEST, REQUEST.replace(b"GET", b"POST")])
def test_a_body_in_chunks_is_refused_unread(server, address, head):
    with socket.create_connection(address) as client:
        answered(client)
        client.sendall(head.replace(b"x\r\n", b"x\r\nTransfer-Encoding: chunked\r\n") + 100 * b"1\r\nx\r\n")
        said = refused(client)
    assert said.startswith("HTTP/1.1 400 ")
    assert "A body is taken with its Content-Length alone, not in chunks." in said
    assert server.server_state.total_requests == 1


def test_a_head_that_is_whole_but_too_long_is_not_read_through(address):
    with socket.create_connection(address) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(REQUEST[:-2] + 11_000 * b"a:b\r\n" + b"\r\n" + REQUEST)
        assert refused(client).split(" ")[:2] in ([""], ["HTTP/1.1", "400"])
    with socket.create_connection(address) as client:
        answered(client, REQUEST[:-2] + b"X: " + 15_000 * b"x" + b"\r\n\r\n")


def test_nor_is_the_head_of_a_second_request_that_comes_with_the_first(server, address):
    received = b""
    with socket.create_connection(address) as client, contextlib.suppress(ConnectionError):
        client.settimeout(30)
        client.sendall(REQUEST + REQUEST[:-2] + 8_000 * b"a:b\r\n" + b"Connection: close\r\n\r\n")
        while part := client.recv(1 << 16):
            received += part
    assert received.count(b"HTTP/1.1 200") <= 1
    with socket.create_connection(address) as client:
        answered(client)


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_given_up(server, address, monkeypatch, header):
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.2)
    with socket.create_connection(address) as client:
        client.sendall(LONG_REQUEST.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n"))
        taken(client, 12)
        end = time.monotonic() + 30
        while server.server_state.connections:
            assert time.monotonic() < end
            time.sleep(0.01)


def asking_long(address):
    """Return a connection that asks for a long answer and has read its beginning, so that all of it is there."""
    client = socket.create_connection(address)
    client.sendall(LONG_REQUEST)
    taken(client, 12)
    return client


def test_of_answers_that_are_too_long_together_the_one_that_is_taken_slowest_is_given_up(address, monkeypatch):
    monkeypatch.setattr(connections, "MOST_UNREAD", LONG + LONG // 2)  # the system holds some of each besides
    with asking_long(address) as idle, asking_long(address) as reading:
        taken(reading, LONG // 2)
        with asking_long(address) as other:
            taken(reading, LONG // 3)
            with asking_long(address) as last:
                for each in (idle, other):
                    with pytest.raises((AssertionError, ConnectionError)):
                        taken(each, LONG)
                taken(last, LONG)
                taken(reading, LONG // 8)


def test_one_answer_may_be_longer_than_all_may_be_also_beside_those_that_were_read(address, monkeypatch):
    monkeypatch.setattr(connections, "MOST_UNREAD", 1)
    with asking_long(address) as client, contextlib.ExitStack() as idle:
        taken(client, LONG)
        for _ in range(2):
            read_long(idle.enter_context(socket.create_connection(address)))
        client.sendall(LONG_REQUEST)
        taken(client, LONG)


def test_a_connection_whose_answer_was_read_is_left_alone(server, address):
    with socket.create_connection(address) as client:
        answered(client)
        (connection,) = server.server_state.connections
        read_long(client)
        assert connection._answer._timer is not None
        connection.loop.call_soon_threadsafe(connection._end_unread)
        answered(client)
        read_long(client)
        answered(client)
        assert connection._answer._timer is None


def test_an_answer_may_take_longer_than_a_head(address):
    with socket.create_connection(address) as client:
        answered(client, REQUEST.replace(b"/ ", b"/slow "))
        answered(client)


def test_of_too_many_connections_the_one_that_has_said_nothing_for_longest_is_closed(address, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with socket.create_connection(address) as first:
        time.sleep(0.05)
        with socket.create_connection(address) as second:
            time.sleep(0.05)
            with socket.create_connection(address) as third:
                closed(first)
                answered(third)
                with socket.create_connection(address) as fourth:
                    closed(second)
                    answered(fourth)
                    answered(third)


def test_a_head_that_trickles_in_does_not_outlast_an_upload_that_pauses(address, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(connections, "_GRACE_SECONDS", 0.1)
    body = bytes(100_000)
    with socket.create_connection(address) as upload, socket.create_connection(address) as trickle:
        head = BODY_TO_COME.replace(b"/ ", b"/slow ").replace(b": 9", f": {len(body)}".encode())
        upload.sendall(head + body[:50_000])
        for byte in b"GET / HT":
            trickle.sendall(bytes([byte]))
            time.sleep(0.05)
        with socket.create_connection(address) as third:
            closed(trickle)
            answered(third)
            upload.sendall(body[50_000:])
            assert upload.recv(9) == b"HTTP/1.1 "


BODY_TO_COME = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("said", [REQUEST, LONG_REQUEST, BODY_TO_COME], ids=["idle", "unread", "without its body"])
def test_of_too_many_connections_one_at_work_is_not_closed(address, monkeypatch, said):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with socket.create_connection(address) as busy:
        busy.sendall(REQUEST.replace(b"/ ", b"/slow "))
        time.sleep(0.1)
        with socket.create_connection(address) as waited_for:
            waited_for.sendall(said)
            time.sleep(0.5)
            with socket.create_connection(address) as third:
                answered(third)
                answered(third)
                with contextlib.suppress(ConnectionResetError):
                    while waited_for.recv(1 << 20):
                        pass
        assert busy.recv(12) == b"HTTP/1.1 200"
