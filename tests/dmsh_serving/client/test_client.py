"""Both clients, which are one implementation, against a server that does as told; tests/live has a real Triton."""

import asyncio
import contextlib
import gc
import inspect
import os
import re
import socket
import stat
import time
import tracemalloc
import types
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_triton import SIZE, FakeTriton
from named_pipe import pipe_at
from tritonclient.grpc import service_pb2

from dmsh_serving.client import AsyncSearchClient, CodeSpace, Retries, SearchClient, questions
from dmsh_serving.client.answers import arrays_of, code_space_of
from dmsh_serving.contract import (
    CODE,
    DISTANCES,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    MAX_K,
    MAX_RESULTS,
    PAD_ID,
    RADIUS,
    K,
)
from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.triton.server.launcher import free_ports

BUSY = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
AT_ONCE = Retries(first_seconds=0.01)


class Waiting:
    """The asyncio client, called as the blocking one is."""

    def __init__(self, *arguments, **options):
        self._loop = asyncio.new_event_loop()

        async def opened():
            return AsyncSearchClient(*arguments, **options)

        self._client = self._loop.run_until_complete(opened())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._loop.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._loop.run_until_complete(method(*arguments, **options))


@pytest.fixture
def server():
    with FakeTriton() as running:
        yield running


@pytest.fixture(params=[SearchClient, Waiting], ids=["blocking", "asyncio"])
def kind(request):
    return request.param


@pytest.fixture
def client(kind, server):
    with kind(server.url, retries=AT_ONCE) as opened:
        yield opened


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_both_clients_have_the_same_calls():
    def calls(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(method)) for name, method in methods if not name.startswith("_")}

    blocking, awaited = calls(SearchClient), calls(AsyncSearchClient)
    assert {name: awaited[name] for name in blocking} == blocking


def test_many_images_are_sent_in_batches_and_come_back_in_order(server, client):
    asked = images(10)
    answer = client.search(asked, 3)
    assert server.rows == [4, 4, 2]
    np.testing.assert_array_equal(answer.ids, np.repeat(asked[:, 0, 0, :1], 3, axis=1))
    assert answer.gallery_version.tolist() == ["v1"] * 10
    assert [request[K].tolist() for request in server.asked] == [[[3]] * 4, [[3]] * 4, [[3]] * 2]


def test_no_request_of_several_images_is_larger_than_a_proxy_takes(server, client, monkeypatch):
    monkeypatch.setattr(questions, "MOST_REQUEST_BYTES", 3 * images(1).nbytes)
    client.encode(images(7))
    assert server.rows == [3, 3, 1]
    files = [bytes(length) for length in (400, 100, 60, 5, 5, 5, 5)]
    monkeypatch.setattr(questions, "MOST_REQUEST_BYTES", 210)  # of which each row has 8 for its k
    client.search_files(files, 1)
    assert server.rows[3:] == [1, 4, 2]  # 400; 100, 60, 5, 5; 5, 5


def test_a_connection_that_nobody_acknowledges_is_given_up_after_20_seconds(server, client):
    client.encode(images(1))
    port = int(server.url.rpartition(":")[2])
    limits = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # one that is no socket, is not connected, or was closed meanwhile
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as each:
                if each.family != socket.AF_UNIX and each.getpeername()[1] == port:
                    limits.add(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    assert limits == {20_000}


def test_of_a_large_k_no_more_is_asked_in_one_request_than_the_server_answers(server, client):
    server.max_batch = 8
    assert client.search(images(10), MAX_K).ids.shape == (10, MAX_K)
    assert server.rows == [4, 4, 2]
    assert client.search(images(10), MAX_RESULTS // 8).ids.shape == (10, MAX_RESULTS // 8)
    assert server.rows[3:] == [8, 2]
    client.search(images(2), 2 * MAX_RESULTS)  # the fake server takes it
    assert server.rows[5:] == [1, 1]


def test_every_request_has_an_id_of_its_own_and_shows_the_token(server, kind):
    with kind(server.url, token="secret") as client:
        client.search(images(10), 3)
    ids = [request for request, _ in server.said]
    assert len(set(ids)) == 3
    assert {shown for _, shown in server.said} == {"Bearer secret"}
    with SearchClient(server.url) as client:
        client.search(images(1), 3)
        assert server.said[-1] == (client.last_request, None)


def test_files_are_given_as_bytes_or_paths(server, client, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert client.search_files([np.bytes_(b"other"), tmp_path / "file"], 2).ids.shape == (2, 2)
    assert server.rows == [2]


def test_a_pipe_is_no_file_and_not_waited_for(client, tmp_path):
    with pipe_at(tmp_path / "pipe"), pytest.raises(OSError, match="not a regular file"):
        client.search_files([tmp_path / "pipe"], 1)


def test_a_radius_and_allowed_ids_are_sent_for_each_image_and_only_if_given(server, client):
    client.search(images(5), 3, radius=4, allowed=[7, 3])
    client.search(images(1), 3, allowed=np.empty(0, np.int64))
    client.search(images(1), 3)
    first, second, empty, plain = server.asked
    assert (first[RADIUS].tolist(), first[FILTER].tolist()) == ([[4]] * 4, [[7, 3]] * 4)
    assert (second[RADIUS].tolist(), second[FILTER].tolist()) == ([[4]], [[7, 3]])
    assert (empty[FILTER].tolist(), RADIUS in empty) == ([[PAD_ID]], False)
    assert set(plain) == {K}


@pytest.mark.parametrize("allowed", [[-1], [1.5], [[1]], np.array([2**63], np.uint64), ["a"]])
def test_allowed_ids_that_are_none_are_refused(client, allowed):
    with pytest.raises(InputError, match=r"allowed (must be|holds) ids"):
        client.search(images(1), allowed=allowed)


@pytest.mark.parametrize("name", ["k", "radius"])
def test_a_number_that_no_request_could_carry_is_refused(client, name):
    with pytest.raises(InputError, match=f"{name} = {10**20} is out of range"):
        client.search(images(1), **{name: 10**20})


def test_nothing_to_ask_is_refused(client):
    with pytest.raises(InputError, match="0 images were given"):
        client.search(images(0))
    with pytest.raises(InputError, match="0 images were given"):
        client.search_files([])


def test_no_server_is_one_clear_error(kind):
    (port,) = free_ports("127.0.0.1", 1)
    with (
        kind(f"127.0.0.1:{port}", timeout=5, retries=AT_ONCE) as client,
        pytest.raises(MissingError, match=rf"no Triton at 127\.0\.0\.1:{port}: start one with dmsh-serve start"),
    ):
        client.search(images(1))


def test_a_busy_server_is_asked_again_and_the_answer_is_whole(server, client):
    client.max_batch("dmsh_search")
    server.refusals = [BUSY, BUSY]
    answer = client.search(images(6), 1)
    assert server.rows == [4, 4, 4, 2], "the first batch three times"
    np.testing.assert_array_equal(answer.ids[:, 0], images(6)[:, 0, 0, 0])


def test_a_server_that_stays_busy_is_an_error_after_the_last_attempt(server, client):
    server.refusals = [BUSY] * 9
    with pytest.raises(MissingError, match="is too busy: its queue is full"):
        client.search(images(1))
    assert len(server.rows) == 3


@pytest.mark.parametrize(
    ("status", "kind_of_error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InputError),
        (grpc.StatusCode.INTERNAL, MissingError),
        (grpc.StatusCode.NOT_FOUND, MissingError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, MissingError),
        (grpc.StatusCode.CANCELLED, MissingError),
    ],
)
def test_nothing_but_an_unavailable_server_is_asked_again(server, client, status, kind_of_error):
    server.refusals = [(status, "no")]
    with pytest.raises(kind_of_error):
        client.search(images(1))
    assert len(server.rows) == 1


OF_A_MATE = "in ensemble 'dmsh_search', incomplete string data for inference input 'file', expecting string of length 9"


def test_a_batch_that_is_refused_for_the_request_of_another_is_asked_again_ten_times(server, kind):
    with kind(server.url, retries=Retries(0)) as client:
        server.refusals = [(grpc.StatusCode.INVALID_ARGUMENT, OF_A_MATE)] * 10
        client.search(images(1))
        assert len(server.rows) == 11
        server.refusals = [(grpc.StatusCode.INVALID_ARGUMENT, OF_A_MATE)] * 11
        with pytest.raises(MissingError, match="refused a batch for another client's request: try again"):
            client.search(images(1))


def test_a_server_that_was_away_is_asked_anew_what_it_serves(server, client):
    assert client.max_batch("dmsh_search") == 4
    server.max_batch, server.refusals = 2, [(grpc.StatusCode.UNAVAILABLE, "Server is stopping")] * 3
    with pytest.raises(MissingError):
        client.search(images(1))
    client.search(images(4))
    assert server.rows[-2:] == [2, 2]


def test_a_server_that_takes_smaller_batches_now_is_asked_for_their_size(server, client):
    assert client.max_batch("dmsh_search") == 4
    server.max_batch, server.refusals = 2, [(grpc.StatusCode.INVALID_ARGUMENT, "batch-size must be <= 2")]
    with pytest.raises(InputError, match="batch-size must be"):
        client.search(images(4))
    client.search(images(4))
    assert server.rows[-2:] == [2, 2]


SPACE = {"bits": "64", "fingerprint": "ab" * 32}


@pytest.mark.parametrize("ask", ["search", "encode"])
def test_batches_that_two_models_answered_are_no_answer(server, client, ask):
    class Replaced(list):
        """The rows of the requests; another model is there when the second one comes."""

        def append(self, rows):
            super().append(rows)
            if len(self) == 2:
                server.parameters = SPACE | {"fingerprint": "ef" * 32}

    server.parameters, server.rows = SPACE, Replaced()
    with pytest.raises(UnavailableError, match="began to serve another model meanwhile: ask again"):
        getattr(client, ask)(images(9))
    assert getattr(client, ask)(images(9)) is not None  # all by the new one


@pytest.mark.parametrize("more", [{}, {"parent_fingerprint": "cd" * 32}])
def test_an_encoder_tells_its_code_space(client, server, more):
    server.parameters = SPACE | more
    assert client.code_space() == CodeSpace("ab" * 32, 64, SIZE, more.get("parent_fingerprint"))
    server.parameters = SPACE | {"fingerprint": "ef" * 32}  # started anew with another model, unseen by this client
    assert client.code_space().fingerprint == "ef" * 32


@pytest.mark.parametrize(
    "said",
    [
        {},
        *({"bits": bits} for bits in ("", "many", "6.4", "-64", "0", "٦٤", "64\n", "1025", "9" * 5000)),
        *({"fingerprint": text} for text in ("", "ab", "xy" * 32, "ab" * 32 + "\n", "AB" * 32)),
        {"parent_fingerprint": "no\nhex"},
    ],
)
def test_an_encoder_that_tells_no_code_space_is_one_clear_error(client, server, said):
    server.parameters = SPACE | said if said else {}
    with pytest.raises(InputError, match=r"^dmsh_encoder at \S+ is no encoder made by dmsh-export repository$"):
        client.code_space()


@pytest.mark.parametrize("dims", [None, [], [0, 4, 3], [-1, 4, 3]])
def test_an_encoder_without_a_size_of_images_is_one_clear_error(dims):
    config = service_pb2.ModelConfigResponse().config
    config.name = "dmsh_encoder"
    if dims is not None:
        config.input.add(name=IMAGE, dims=dims)
    for name, value in SPACE.items():
        config.parameters[name].string_value = value
    with pytest.raises(InputError, match="is no encoder made by"):
        code_space_of(config, "host:1")


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "content", "said"),
    [
        (IDS, "INT64", [1, 0], b"", "gave ids as int64 [1, 0]"),
        (IDS, "FP64", [1, 2], bytes(16), "gave ids as float64 [1, 2]"),
        (IDS, "INT64", [1, 2, 1], bytes(16), "gave ids as int64 [1, 2, 1]"),
        (DISTANCES, "INT32", [1, 3], bytes(12), "gave ids, distances, keys of different numbers"),
        (KEYS, "UINT8", [1, 2], bytes(2), "gave keys as uint8 [1, 2]"),
        (GALLERY_VERSION, "BYTES", [1, 0], b"", "gave gallery_version as object [1, 0]"),
        (CODE, "INT8", [1, 8], bytes(8), "gave code as int8 [1, 8]"),
        (CODE, "NONSENSE", [1, 8], bytes(8), "answer"),
        (IDS, "INT64", [1, 2], bytes(9), "gave an answer that cannot be read"),
        (IDS, "INT64", [2, 2], bytes(32), "gave an answer without 1 rows"),
    ],
)
def test_an_answer_that_no_model_of_ours_gives_is_one_clear_error(client, server, name, datatype, shape, content, said):
    answer = server._answer

    def lying(request):
        found = answer(request)
        place = [output.name for output in found.outputs].index(name)
        found.outputs[place].datatype = datatype
        found.outputs[place].shape[:] = shape
        found.raw_output_contents[place] = content
        return found

    server._answer = lying
    with pytest.raises(MissingError, match=re.escape(said)) as raised:
        client.search(images(1), 2)
    assert "\n" not in str(raised.value)


def test_answers_of_different_widths_are_one_clear_error(client, server):
    answer, widths = server._answer, iter((8, 4))

    def lying(request):
        found, width = answer(request), next(widths)
        place = [output.name for output in found.outputs].index(CODE)
        rows = found.outputs[place].shape[0]
        found.outputs[place].shape[:] = [rows, width]
        found.raw_output_contents[place] = bytes(rows * width)
        return found

    server._answer = lying
    with pytest.raises(MissingError, match="gave code of another width in each of two answers"):
        client.search(images(6), 2)


def test_what_a_model_takes_is_asked_once(client, server):
    assert [client.max_batch("dmsh_search"), client.max_batch("dmsh_search")] == [4, 4]


def test_without_retries_a_busy_server_is_an_error_at_once(server, kind):
    server.refusals = [BUSY]
    with kind(server.url, retries=Retries(0)) as client, pytest.raises(MissingError, match="too busy"):
        client.search(images(1))
    assert len(server.rows) == 1


def test_each_request_is_given_the_timeout_and_the_server_told(server, kind):
    with kind(server.url, timeout=1.5) as client:
        client.search(images(1))
        assert server.budgets[-1] == pytest.approx(1.5, abs=0.3)
        server.seconds = 3
        with pytest.raises(MissingError, match=r"did not answer within 1\.5 s"):
            client.search(images(1))


def test_what_is_no_file_and_no_whole_number_is_refused_before_it_is_sent(server, client):
    for file in ("photo.png", bytearray(b"x")):
        with pytest.raises(InputError, match=r"bytes or as a pathlib\.Path, not as (str|bytearray)"):
            client.search_files([file])
    for asked, name in (({"k": 2.0}, "k = 2.0"), ({"radius": 12.7}, "radius = 12.7")):
        with pytest.raises(InputError, match=rf"^{name} is no whole number"):
            client.search(images(1), **asked)
    assert server.rows == []
    client.search(images(1), np.int8(2), radius=np.uint64(3))


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_is_none_is_refused(kind, timeout):
    with pytest.raises(InputError, match=r"^timeout = .*: a request has more than 0 and up to 86,400 seconds"):
        kind("127.0.0.1:1", timeout=timeout)


def test_a_deadline_covers_all_batches_of_a_call(server, client):
    client.max_batch("dmsh_search")
    server.seconds = 0.3
    begun = time.monotonic()
    with pytest.raises(MissingError, match="did not answer within"):
        client.search(images(40), deadline=1.0)
    assert time.monotonic() - begun < 2.5, "3 s for all"
    assert 2 <= len(server.rows) <= 4, "of 10 batches"
    assert server.budgets[0] > server.budgets[-1], "what is left of it"


def test_a_deadline_leaves_no_time_for_an_attempt_that_would_come_too_late(server, kind):
    server.refusals = [BUSY] * 100
    with kind(server.url, retries=Retries(50, 0.2, 0.2)) as client:
        begun = time.monotonic()
        with pytest.raises(MissingError):
            client.search(images(1), deadline=0.5)
    assert time.monotonic() - begun < 5, "10 s for all attempts"


async def refused_at_once(client):
    """Let the client be refused once; of either kind."""
    with contextlib.suppress(InputError):
        answer = client.search_files([bytes(1_000_000)])
        if inspect.isawaitable(answer):
            await answer


@pytest.mark.parametrize("kind", [SearchClient, AsyncSearchClient])
def test_requests_that_are_refused_keep_nothing_in_memory(server, kind):
    async def kept_of_20():
        client = kind(server.url)
        await refused_at_once(client)  # what is loaded and kept once
        tracemalloc.start()
        for _ in range(20):
            await refused_at_once(client)
        kept, _ = tracemalloc.get_traced_memory()
        if closing := client.close():
            await closing
        return kept

    server.refusals = [(grpc.StatusCode.INVALID_ARGUMENT, "no image")] * 21
    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(kept_of_20()) < 5_000_000, "of 20 MB"
    finally:
        tracemalloc.stop()
        gc.enable()
    assert server.refusals == []


def test_a_call_whose_task_is_cancelled_goes_on_at_the_server(server):
    async def cancelled():
        async with AsyncSearchClient(server.url) as client:
            await client.max_batch("dmsh_search")
            task = asyncio.create_task(client.search(images(1)))
            while not server.rows:
                await asyncio.sleep(0.01)
            (call,) = client._going_on
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return (await call).get_response()  # the end of the client has waited for it

    server.seconds = 0.5
    assert asyncio.run(cancelled())
    assert not server.cancelled.is_set()


def test_many_calls_share_one_connection_at_once(server):
    async def all_at_once():
        async with AsyncSearchClient(server.url) as client:
            return await asyncio.gather(*(client.search(image[None]) for image in images(8)))

    server.seconds = 0.5
    begun = time.monotonic()
    answers = asyncio.run(all_at_once())
    assert time.monotonic() - begun < 3, "4 s one after the other"
    assert [answer.ids[0, 0] for answer in answers] == images(8)[:, 0, 0, 0].tolist()


def test_any_model_can_be_asked_in_asyncio_with_names_of_its_own(server):
    async def asked():
        async with AsyncSearchClient(server.url) as client:
            return await client.ask("dmsh_search", {"image": images(2)}, ["ids"])

    assert asyncio.run(asked())["ids"].shape == (2, 1)


def test_an_answer_of_very_many_texts_is_refused_before_they_are_read():
    class Packed:
        def get_output(self, name):
            return types.SimpleNamespace(shape=[1, 1 << 27])

        def as_numpy(self, name):
            pytest.fail("it was read")

    with pytest.raises(MissingError, match=r"gave keys as \[1, 134217728\]: no model of ours"):
        arrays_of(Packed(), [IDS, KEYS], 1, "127.0.0.1:8001")
