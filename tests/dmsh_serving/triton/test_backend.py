"""What a model behind Triton's Python backend writes of a request."""

import types

import pytest

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
