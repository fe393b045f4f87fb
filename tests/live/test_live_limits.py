"""Limits: bodies too large, requests nobody waits for any more, queues that are full."""

import contextlib
import http.client
import os
import signal
import socket
import time

import numpy as np
import psutil
import pytest
import tiny_model
import tritonclient.grpc as triton
from hostile_images import SLOW
from live_world import IMAGES, World, check, png
from tritonclient.utils import np_to_triton_dtype

from dmsh_serving.client import SearchClient
from dmsh_serving.contract import DECODE_MODEL, SEARCH_FILE_MODEL
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images.decode import MAX_FILE_BYTES
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.spec import RepositorySpec

MAX_QUEUE = 6
TAKEN = 2  # requests that Triton has taken from a model's queue at most: one in work, one made ready
NOISE_SECONDS = 2  # of a busy machine, and of Triton's batcher over limited queues; a request that hangs takes 30
SLOW_FILE = png(np.zeros((3000, 3000, 3), np.uint8))  # few bytes to send, many pixels to decode
SLOW_REQUEST = np.array([[SLOW_FILE]] * 2, dtype=np.object_)


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server that decodes one request of two files at a time, and lets six wait."""
    world = World.make(tmp_path_factory.mktemp("limits"))
    spec = RepositorySpec(
        world.gallery,
        tiny_model.BITS,
        tiny_model.SIZE,
        tiny_model.FINGERPRINT,
        model=world.folder / "model.onnx",
        max_batch=2,
        max_queue=MAX_QUEUE,
        max_wait_seconds=30,
    )
    write_repository(world.repository, spec)
    with world.server() as running:
        yield running


@pytest.fixture
def asking(busy):
    with triton.InferenceServerClient(busy.url) as client:
        yield client


def still_right(server):
    """Check an answer; return how long it took to come."""
    began = time.monotonic()
    with SearchClient(server.url) as client:
        check(client.search_files([png(IMAGES[210])], 5), IMAGES[210:211], 5)
    return time.monotonic() - began


def start(client, model, count, **options):
    """Send ``count`` slow requests at once; return the calls and the list that their errors (or None) come into."""
    tensor = triton.InferInput("file", list(SLOW_REQUEST.shape), np_to_triton_dtype(SLOW_REQUEST.dtype))
    tensor.set_data_from_numpy(SLOW_REQUEST)
    ended = []
    calls = [
        client.async_infer(model, [tensor], lambda result, error: ended.append(error), **options) for _ in range(count)
    ]
    return calls, ended


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def decoded(client):
    return client.get_inference_statistics(DECODE_MODEL).model_stats[0].inference_count


def seconds_of_one(client):
    began = time.monotonic()
    _, ended = start(client, SEARCH_FILE_MODEL, 1)
    wait_for(lambda: ended)
    assert ended == [None]
    return time.monotonic() - began


def test_fault_07_a_file_over_the_limit_is_refused_and_the_server_lives(server, client):
    with pytest.raises(InputError, match="file: the file has 67,108,865 bytes, at most 67,108,864"):
        client.search_files([bytes(MAX_FILE_BYTES + 1)])
    still_right(server)


def test_fault_29_a_file_that_is_slow_to_open_is_refused_and_the_server_lives(server, client):
    with pytest.raises(InputError, match="file: the image takes too long to decode"):
        client.search_files([SLOW["TIFF"]])
    still_right(server)


@pytest.mark.parametrize("length", ["18446744073709551615", "1180591620717411303424", "-1", "many"])
def test_fault_07_a_body_that_lies_about_its_length_is_dropped_and_the_server_lives(server, length):
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        head = f"POST /v2/models/{SEARCH_FILE_MODEL}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 100_000)
        still_right(server)
    still_right(server)


def test_fault_07_a_large_body_that_is_no_request_is_refused_and_the_server_lives(server):
    connection = http.client.HTTPConnection(server.http_url, timeout=20)
    connection.request("POST", f"/v2/models/{SEARCH_FILE_MODEL}/infer", body=b"x" * MAX_FILE_BYTES)
    assert connection.getresponse().status >= http.HTTPStatus.BAD_REQUEST
    connection.close()
    still_right(server)


def test_fault_23_what_waits_in_a_queue_longer_than_its_client_is_never_computed(busy, asking):
    one = seconds_of_one(asking)
    before = decoded(asking)
    patience = 1.5 * one
    _, ended = start(asking, SEARCH_FILE_MODEL, MAX_QUEUE, client_timeout=patience, timeout=int(patience * 1e6))
    wait_for(lambda: len(ended) == MAX_QUEUE)
    assert still_right(busy) < 3 * one + NOISE_SECONDS
    assert decoded(asking) - before < 2 * MAX_QUEUE  # two files a request; what was under way was finished


def test_fault_23_the_client_that_gives_up_takes_its_request_along(busy, asking):
    one = seconds_of_one(asking)
    before = decoded(asking)
    start(asking, SEARCH_FILE_MODEL, 3)
    with SearchClient(busy.url, timeout=one) as client:
        client.max_batch(SEARCH_FILE_MODEL)
        with pytest.raises(MissingError, match=r"did not answer within|waited too long"):
            client.search_files([SLOW_FILE] * 2)
    assert still_right(busy) < 4 * one + NOISE_SECONDS
    assert decoded(asking) - before <= 3 * 2 + 1  # the two files of the one that gave up are not among them


def test_fault_23_cancelled_requests_leave_a_models_queue_at_once(busy, asking):
    one = seconds_of_one(asking)
    before = decoded(asking)
    calls, ended = start(asking, DECODE_MODEL, MAX_QUEUE)
    time.sleep(one / 2)
    for call in calls:
        call.cancel()
    wait_for(lambda: len(ended) == MAX_QUEUE)
    assert still_right(busy) < 4 * one + NOISE_SECONDS
    assert decoded(asking) - before < 2 * MAX_QUEUE


@contextlib.contextmanager
def held(server, model):
    """Hold the process of a model: what it works on and what waits for it stay as they are."""
    (stub,) = [stub for stub in server.stubs if any(f"/{model}/" in word for word in psutil.Process(stub).cmdline())]
    os.kill(stub, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stub, signal.SIGCONT)


def test_fault_24_a_full_queue_refuses_without_waiting_for_what_is_before_it_and_the_server_recovers(busy, asking):
    count = MAX_QUEUE + 20
    with held(busy, DECODE_MODEL), SearchClient(busy.url) as client:
        _, ended = start(asking, SEARCH_FILE_MODEL, count)
        wait_for(lambda: len(ended) >= count - MAX_QUEUE - TAKEN)  # though nothing is decoded meanwhile
        assert None not in ended
        client.max_batch(SEARCH_FILE_MODEL)
        with pytest.raises(MissingError, match="too busy: its queue is full"):
            client.search_files([SLOW_FILE] * 2)
    wait_for(lambda: len(ended) == count)
    refused = [error for error in ended if error is not None]
    assert all("maximum queue size" in str(error) for error in refused)
    assert {error.status() for error in refused} == {"StatusCode.UNAVAILABLE"}
    assert MAX_QUEUE <= count - len(refused) <= MAX_QUEUE + TAKEN
    still_right(busy)
