"""Connections that say nothing, or half of it, over a server of a few lines."""

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


async def application(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    config = uvicorn.Config(application, port=0, http=Connection, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()
    server.should_exit = True
    thread.join()


def closed(client):
    """Wait until the server has closed a connection, without an answer."""
    client.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""


def answered(client, request=REQUEST):
    client.settimeout(30)
    client.sendall(request)
    got = b""
    while not got.endswith(b"ok"):
        got += client.recv(1000)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_a_connection_that_does_not_say_what_it_wants_is_closed(address, sent):
    with socket.create_connection(address) as client:
        client.sendall(sent)
        closed(client)


def test_half_a_head_is_not_kept_open_by_ever_more_of_it(address):
    with socket.create_connection(address) as client, contextlib.suppress(ConnectionError):
        client.settimeout(30)
        client.sendall(b"GET / HTTP/1.1\r\n")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            client.sendall(b"X: y\r\n")
            time.sleep(0.1)
        pytest.fail("it is still open")


def test_the_head_of_a_second_request_is_not_waited_for_either(address):
    with socket.create_connection(address) as client:
        answered(client)
        client.sendall(b"GET / HTTP/1.1\r\n")
        closed(client)


def test_an_answer_may_take_longer_than_a_head(address):
    with socket.create_connection(address) as client:
        answered(client, REQUEST.replace(b"/ ", b"/slow "))
        answered(client)


def test_one_connection_too_many_is_closed_and_the_others_are_served(address, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 600)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        answered(first)
        answered(second)
        with socket.create_connection(address) as third:
            closed(third)
        answered(first)
