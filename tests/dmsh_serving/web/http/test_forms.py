"""Forms that are read, and those that their parser is not given."""

import asyncio

import pytest
from starlette.requests import Request

from dmsh_serving.web.http import forms
from dmsh_serving.web.http.forms import parts_of_form
from dmsh_serving.web.http.problems import ProblemError


def read(body, kind):
    said = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(said)

    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    return asyncio.run(parts_of_form(Request(scope, receive)))


def parts_of(*parts, boundary="b"):
    """A body of parts, and its type."""
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nbytes'
END = b"\r\n--b--\r\n"
FIELD = b'\r\n--b\r\nContent-Disposition: form-data; name="where.c"\r\n\r\nx'


def test_a_form_is_read_with_as_many_parts_as_it_may_have():
    assert read(*parts_of(FILE, END)) == ([("file", b"bytes")], [])
    assert read(*parts_of(b"\r\n", FILE, END)) == ([("file", b"bytes")], [])
    assert read(*parts_of(FILE, FIELD * 99, END))[1] == [("where.c", "x")] * 99


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (parts_of(FILE, b"\r\n--bx" * 100_000, END), "its boundary stands inside a part"),
        (parts_of(FILE, b"\r\n--b" + b" " * 100_000, END), "its boundary stands inside a part"),
        (parts_of(b"--b" + b" " * 100_000, FILE, END), "does not begin with its boundary"),
        (parts_of(FILE, FIELD * 100, END), "has more than 100 parts"),
        (parts_of(FILE, FIELD.replace(b"where.c", b"a" * 1024), END), "the head of a part has over 1024 bytes"),
        (parts_of(FILE, FIELD), "has no end"),
        (
            parts_of(FILE.removesuffix(b"bytes") + b"--b--", b"\r\n--bx" * 100_000, END),
            "its boundary stands inside a part",
        ),
        (parts_of(FILE.replace(b'"x"', b'"x"' + b";" * 9), END), "the head of a part"),
        (parts_of(FILE, END, boundary=""), "does not begin with its boundary"),
    ],
    ids=[
        "in a part",
        "padded",
        "padded at first",
        "too many",
        "a long head",
        "no end",
        "an end in a head",
        "many options",
        "none",
    ],
)
def test_a_form_that_would_take_its_parser_long_is_refused_unread(said, why, monkeypatch):
    monkeypatch.setattr(forms, "_parts_of", lambda *_: pytest.fail("read"))
    with pytest.raises(ProblemError, match=f"the form cannot be read: .*{why}") as error:
        read(*said)
    assert error.value.status == 400


def test_a_type_of_a_form_that_is_long_to_read_is_refused_unread(monkeypatch):
    monkeypatch.setattr(forms, "parse_options_header", lambda _: pytest.fail("read"))
    with pytest.raises(ProblemError, match="too long to be read") as error:
        read(FILE + END, "multipart/form-data; boundary=b" + ";" * 300)
    assert error.value.status == 415
