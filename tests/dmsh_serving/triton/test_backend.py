"""What a model behind Triton's Python backend writes of a request."""

import sys
import types

import pytest

from dmsh_serving.errors import InputError
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


def test_a_long_error_is_cut(monkeypatch):
    stub = types.ModuleType("triton_python_backend_utils")
    stub.TritonError = lambda text, code: types.SimpleNamespace(text=text, code=code)
    stub.TritonError.INVALID_ARG = 3
    stub.InferenceResponse = lambda error: error
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    assert backend._response(InputError("no")).text == "no"
    assert len(backend._response(InputError("x" * (1 << 20))).text) == backend._LONGEST_ERROR
