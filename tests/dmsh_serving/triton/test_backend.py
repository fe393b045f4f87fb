"""What a model behind Triton's Python backend writes of a request."""

import sys
import types

import pytest

from dmsh_serving.errors import InputError, MissingError, UnavailableError
from dmsh_serving.triton import backend


def undecodable():
    return b"\xff".decode()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (lambda: "5e1f0c2d", "5e1f0c2d"),
        (lambda: "00-4bf92f35-01:a/b", "00-4bf92f35-01:a/b"),
        (lambda: "", "without an id"),
        (lambda: "a was slow\ngallery /g", "a%20was%20slow%0Agallery%20/g"),
        (lambda: "\u2028\x1b[31m", "%E2%80%A8%1B%5B31m"),
        (undecodable, "with an id that is no text"),
    ],
)
def test_a_requests_id_is_one_word_of_the_log_whatever_a_client_sends(given, shown):
    assert backend._id_of(types.SimpleNamespace(request_id=given)) == shown


@pytest.mark.parametrize("letter", ["x", "\n", "\U0001f600"])
def test_a_long_id_is_cut(letter):
    assert len(backend._id_of(types.SimpleNamespace(request_id=lambda: letter * (1 << 20)))) == backend._LONGEST_ID


@pytest.fixture
def responses(monkeypatch):
    """Triton's module as far as an answer needs it; an error is its text and its code."""
    stub = types.ModuleType("triton_python_backend_utils")
    stub.TritonError = lambda text, code: types.SimpleNamespace(text=text, code=code)
    stub.TritonError.INVALID_ARG, stub.TritonError.UNAVAILABLE, stub.TritonError.INTERNAL = (
        "invalid",
        "unavailable",
        "no",
    )
    stub.Tensor = lambda name, array: (name, array)
    stub.InferenceResponse = lambda tensors=None, error=None: error or tensors
    monkeypatch.setitem(sys.modules, stub.__name__, stub)


def test_a_long_error_is_cut(responses):
    assert backend._response(InputError("no")).text == "no"
    for kind in (InputError, UnavailableError):
        assert len(backend._response(kind("x" * (1 << 20))).text) == backend._LONGEST_ERROR


def test_each_request_gets_its_own_answer_or_error_of_one_batch(responses, caplog):
    answers = [{"image": 1}, InputError("bad"), UnavailableError("busy"), MissingError("no python in /secret")]
    calls, reasons = [], []

    def answer(requests):
        calls.append(len(requests))
        return answers

    request = types.SimpleNamespace(inputs=list, request_id=lambda: "mine")
    good, bad, busy, failed = backend.respond([request] * 4, answer, reasons.append)
    assert good == [("image", 1)]
    assert (bad.text, bad.code) == ("bad", "invalid")
    assert (busy.text, busy.code) == ("busy", "unavailable")
    assert (failed.text, failed.code) == ("the server failed on this request; its log says why", "no")
    assert caplog.messages == ["request mine failed: no python in /secret"]
    assert reasons == ["invalid", "unavailable", "internal"]
    assert calls == [4]
