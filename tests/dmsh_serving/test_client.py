"""The client without a server; tests/live has the rest."""

import numpy as np
import pytest
import tiny_model
from tritonclient.utils import InferenceServerException

from dmsh_serving.client import SearchClient, error_of
from dmsh_serving.contract import (
    CODE,
    DISTANCES,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    PAD_ID,
    RADIUS,
    K,
)
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.triton.server.launcher import free_ports


class Answers:
    """In place of a connection: answers by echoing, as row r's id, the first pixel of image r; notes the batches."""

    def __init__(self):
        self.batches, self.timeouts, self.asked = [], [], []

    def get_model_config(self, model, client_timeout):
        class Config:
            class config:  # noqa: N801
                max_batch_size = 4

        return Config

    def infer(self, model, inputs, outputs, client_timeout, timeout):
        self.timeouts.append((client_timeout, timeout))
        arrays = {tensor.name(): np.frombuffer(tensor._get_content(), np.uint8) for tensor in inputs}
        shapes = {tensor.name(): tensor.shape() for tensor in inputs}
        self.asked.append(
            {name: arrays[name].view(np.int64).reshape(shapes[name]) for name in (RADIUS, FILTER) if name in arrays}
        )
        images = arrays[IMAGE].reshape(shapes[IMAGE])
        k = arrays[K].view(np.int64).reshape(shapes[K])
        self.batches.append((len(images), k.ravel().tolist()))
        ids = np.repeat(images[:, 0, 0, :1].astype(np.int64), k[0, 0], axis=1)
        version = np.full((len(images), 1), f"v{len(self.batches)}".encode(), dtype=np.object_)
        found = {
            IDS: ids,
            DISTANCES: ids.astype(np.int32),
            KEYS: ids.astype(str).astype(np.object_),
            GALLERY_VERSION: version,
            CODE: np.zeros((len(images), 8), np.uint8),
        }

        class Result:
            @staticmethod
            def as_numpy(name):
                return found[name]

        return Result

    def close(self):
        pass


@pytest.fixture
def client():
    with SearchClient("127.0.0.1:1") as opened:
        opened._client.close()
        opened._client = Answers()
        yield opened


def test_many_images_are_sent_in_batches_and_come_back_in_order(client):
    images = tiny_model.random_images(10)
    answer = client.search(images, 3)
    assert client._client.batches == [(4, [3] * 4), (4, [3] * 4), (2, [3] * 2)]
    np.testing.assert_array_equal(answer.ids[:, 0], images[:, 0, 0, 0])
    assert answer.gallery_version.tolist() == ["v1"] * 4 + ["v2"] * 4 + ["v3"] * 2


def test_a_radius_and_allowed_ids_are_sent_for_each_image_and_only_if_given(client):
    client.search(tiny_model.random_images(5), 3, radius=4, allowed=[7, 3])
    client.search(tiny_model.random_images(1), 3, allowed=np.empty(0, np.int64))
    client.search(tiny_model.random_images(1), 3)
    first, second, empty, plain = client._client.asked
    assert (first[RADIUS].tolist(), first[FILTER].tolist()) == ([[4]] * 4, [[7, 3]] * 4)
    assert (second[RADIUS].tolist(), second[FILTER].tolist()) == ([[4]], [[7, 3]])
    assert (empty[FILTER].tolist(), RADIUS in empty) == ([[PAD_ID]], False)
    assert plain == {}


@pytest.mark.parametrize("allowed", [[-1], [1.5], [[1]], np.array([2**63], np.uint64), ["a"]])
def test_allowed_ids_that_are_none_are_refused(client, allowed):
    with pytest.raises(InputError, match=r"allowed (must be|holds) ids"):
        client.search(tiny_model.random_images(1), allowed=allowed)


@pytest.mark.parametrize("name", ["k", "radius"])
def test_a_number_that_no_request_could_carry_is_refused(client, name):
    with pytest.raises(InputError, match=f"{name} = {10**20} is out of range"):
        client.search(tiny_model.random_images(1), **{name: 10**20})


def test_nothing_to_ask_is_refused(client):
    with pytest.raises(InputError, match="0 images were given"):
        client.search(tiny_model.random_images(0))
    with pytest.raises(InputError, match="0 images were given"):
        client.search_files([])


def test_no_server_is_one_clear_error():
    (port,) = free_ports("127.0.0.1", 1)
    with (
        SearchClient(f"127.0.0.1:{port}", timeout=5) as client,
        pytest.raises(MissingError, match=rf"no Triton at 127\.0\.0\.1:{port}: start one with dmsh-serve start"),
    ):
        client.search(tiny_model.random_images(1))


@pytest.mark.parametrize(
    ("status", "message", "kind", "said"),
    [
        ("INVALID_ARGUMENT", "[request id: <id_unknown>] bad shape. NOTE: much advice", InputError, "^bad shape.$"),
        ("NOT_FOUND", "no model", MissingError, "does not serve this: no model"),
        ("UNAVAILABLE", "failed to connect to all addresses", MissingError, "no Triton at"),
        ("UNAVAILABLE", "Exceeds maximum queue size", MissingError, "is too busy: its queue is full"),
        ("UNAVAILABLE", "in ensemble 'a', Request timeout expired", MissingError, "is too busy: .* waited too long"),
        ("UNAVAILABLE", "Server is stopping", MissingError, r"failed \(UNAVAILABLE\): Server"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", MissingError, "did not answer within 30 s"),
        ("INTERNAL", "boom", MissingError, r"failed \(INTERNAL\): boom"),
    ],
)
def test_each_status_becomes_its_error(client, status, message, kind, said):
    said_by_triton = InferenceServerException(message, status=f"StatusCode.{status}")
    error = error_of(said_by_triton, client.url, client.timeout)
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error


def test_the_server_is_told_how_long_the_answer_is_waited_for(client):
    client.timeout = 1.5
    client.search(np.zeros((1, 4, 4, 3), np.uint8))
    assert client._client.timeouts == [(1.5, 1_500_000)]
