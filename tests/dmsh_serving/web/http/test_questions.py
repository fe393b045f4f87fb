"""A request says what is asked, or is told what it got wrong."""

import asyncio
import json

import pytest
from starlette.requests import Request

from dmsh_serving.errors import InputError
from dmsh_serving.web.codes.ranking import Cursor
from dmsh_serving.web.http import questions
from dmsh_serving.web.http.problems import MOST_LETTERS, ProblemError, told
from dmsh_serving.web.http.questions import Example, Question, json_id, question_of

REGION = {"key": "a", "box": [0, 0, 1, 1]}


def read(body, kind="application/json", query=""):
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    parts = iter([{"type": "http.request", "body": data, "more_body": False}])
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(data)).encode())]
    scope = {
        "type": "http",
        "app": None,
        "method": "POST",
        "path": "/",
        "query_string": query.encode(),
        "headers": headers,
    }

    async def receive():
        return next(parts)

    return asyncio.run(question_of(Request(scope, receive)))


def form(**fields):
    lines = []
    for name, value in fields.items():
        file = '; filename="x"' if isinstance(value, bytes) else ""
        value = value if isinstance(value, bytes) else value.encode()
        lines += [b"--b", f'Content-Disposition: form-data; name="{name}"{file}'.encode(), b"", value]
    return b"\r\n".join([*lines, b"--b--", b""])


def test_json_says_everything():
    found = read(
        {
            "like": [{"key": "a/b.png", "box": [0, 0.5, 1, 0.5]}, {"id": 7}, {"id": "9007199254740993"}],
            "unlike": [{"code": "00ff"}],
            "k": 3,
            "radius": -4,
            "ids": [1, "2"],
            "where": {"b": ["1"], "a": ["x", "y"]},
            "after": {"distance": -3, "id": "5"},
            "version": "00000001-00000000",
            "fingerprint": "ab" * 32,
            "explain": True,
        }
    )
    assert found == Question(
        like=(Example(key="a/b.png", box=(0, 0.5, 1, 0.5)), Example(number=7), Example(number=2**53 + 1)),
        unlike=(Example(code=b"\x00\xff"),),
        k=3,
        radius=-4,
        ids=(1, 2),
        where=(("a", ("x", "y")), ("b", ("1",))),
        after=Cursor(-3, 5),
        version="00000001-00000000",
        fingerprint="ab" * 32,
        explain=True,
    )
    assert not found.is_plain
    assert read({"key": "a"}) == Question(like=(Example(key="a"),))
    assert read({"key": "a"}).is_plain


def test_a_form_and_bytes_say_the_same():
    expected = Question(
        like=(Example(file=b"bytes", box=(0, 0, 0.5, 0.5)),), k=3, radius=4, ids=(1, 2), where=(("c", ("x", "y")),)
    )
    assert read(b"bytes", "image/png", "k=3&radius=4&box=0,0,.5,.5&ids=1,2&where.c=x&where.c=y") == expected
    assert read(b"bytes", "image/png", "fingerprint=abcd").fingerprint == "abcd"
    fields = {"file": b"bytes", "k": "3", "radius": "4", "box": "0,0,0.5,.5", "ids": "1,2", "where.c": "x"}
    body = form(**fields).replace(b"--b--", b'--b\r\nContent-Disposition: form-data; name="where.c"\r\n\r\ny\r\n--b--')
    assert read(body, "multipart/form-data; boundary=b") == expected
    del fields["where.c"]
    whole = {**fields, "where": '{"c": ["x", "y"]}'}
    assert read(form(**whole), "multipart/form-data; boundary=b") == expected
    odd = form(file=b"x", where='{"size \\"in\\"": ["two\\nlines"]}')
    assert read(odd, "multipart/form-data; boundary=b").where == (('size "in"', ("two\nlines",)),)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "no JSON object"),
        (b"{", "is not JSON"),
        (b"[" * 9_000, "is not JSON"),
        ({}, "1 to 64 examples, this one has 0"),
        ({"like": [{"id": 1}] * 65}, "this one has 65"),
        ({"like": [REGION] * 3, "unlike": [{"key": "a"}, REGION, REGION]}, "at most 4 regions, this one has 5"),
        ({"like": {"id": 1}}, "'like' is a list"),
        ({"key": "a", "like": []}, "not both"),
        ({"key": 5}, "key = 5 is no text"),
        ({"like": [{"code": "aa", "id": 1}]}, "one of key, id and code, or key and id"),
        ({"like": [{"file": "x"}]}, "an example has no 'file'"),
        ({"like": ["a"]}, "an example is an object"),
        ({"like": [{"id": -1}]}, "id = -1 is out of range"),
        ({"like": [{"id": 2**63}]}, "is out of range"),
        ({"like": [{"id": True}]}, "id = True is out of range"),
        ({"like": [{"id": "x"}]}, "'x' is no whole number"),
        ({"like": [{"code": "0g"}]}, "not in hexadecimal"),
        ({"like": [{"id": 1, "box": [0, 0, 1, 1]}]}, "give it with a key or a file"),
        ({"like": [{"key": "a", "box": [0, 0, 1]}]}, "left, top, width and height"),
        ({"like": [{"key": "a", "box": [0, 0, 0, 1]}]}, "not inside the image"),
        ({"like": [{"key": "a", "box": [0.5, 0, 0.6, 1]}]}, "not inside the image"),
        (b'{"like": [{"key": "a", "box": [0, 0, NaN, 1]}]}', "left, top, width and height"),
        ({"key": "a", "k": 16_385}, "k = 16385 is out of range"),
        ({"key": "a", "k": "5"}, "k = '5' is out of range"),
        ({"key": "a", "radius": 2**31}, "no whole number of 32 bits"),
        ({"key": "a", "ids": list(range(100_001))}, "at most 100,000 ids"),
        ({"key": "a", "where": {"c": "x"}}, "for each column a list"),
        ({"key": "a", "where": {"c": []}}, "for each column a list"),
        ({"key": "a", "where": {"b": ["x"], "c": ["x"] * 1001}}, "at most 100 columns, and 1,000 values of each"),
        ({"key": "a", "where": {f"c{number}": ["x"] for number in range(101)}}, "at most 100 columns"),
        ({"key": "a", "after": {"distance": 1}}, "the distance and the id"),
        ({"key": "a", "after": {"distance": 10**30, "id": 1}}, "the distance and the id"),
        *[
            ({"key": "a", "version": each}, "version is the gallery_version of the answer before")
            for each in (5, "", "../gallery", "00000001-0000000G", "00000001-00000000\n", "0000001-00000000", "*")
        ],
        ({"key": "a", "fingerprint": 5}, "fingerprint is the one that /v1/gallery gives"),
        ({"key": "a", "explain": 1}, "explain is true or false"),
        ({"key": "a", "rerank": "x"}, "a search has no 'rerank'"),
    ],
)
def test_what_is_wrong_is_said(body, said):
    with pytest.raises(ProblemError, match=said) as error:
        read(body)
    assert error.value.status == 400


def test_a_filter_has_room_for_many_values():
    where = {f"{column:03}": ["x"] * 1000 for column in range(100)}
    assert read({"key": "a", "where": where}).where == tuple((name, ("x",) * 1000) for name in where)


def test_a_negative_radius_needs_an_example_to_be_unlike():
    with pytest.raises(InputError, match="radius = -1 is out of range"):
        read({"key": "a", "radius": -1})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("k=5&k=6", "is said twice"),
        ("colour=red", "is none of k, radius, box"),
        ("k=five", "k = 'five' is no whole number"),
        ("box=0,0,x,1", "'x' is no number"),
        ("ids=1,b", "ids = 'b' is no whole number"),
        ("ids=b" + "," * 100_001, "at most 100,000 ids"),
        ("explain=maybe", "is none of"),
        ("where=x", "where is not JSON"),
        ("where=7", "where is an object"),
        ('where={"c":["x"]}&where={}', "is said twice"),
        ('where={"c":["x"]}&where.c=y', "give 'where' or 'where.COLUMN', not both"),
        ('where.c=y&where={"c":["x"]}', "give 'where' or 'where.COLUMN', not both"),
        ("where=" + "[" * 100_000, "where has more than"),
    ],
)
def test_a_wrong_parameter_is_said(query, said):
    with pytest.raises(ProblemError, match=said):
        read(b"x", "image/png", query)


def test_other_bodies_are_refused():
    for kind in ("text/html", "", "application/x-www-form-urlencoded"):
        with pytest.raises(ProblemError) as error:
            read(b"x", kind)
        assert error.value.status == 415
    with pytest.raises(ProblemError, match="one file, in the field 'file'"):
        read(form(picture=b"x"), "multipart/form-data; boundary=b")
    with pytest.raises(ProblemError, match="form cannot be read"):
        read(form(file=b"x", other=b"y"), "multipart/form-data; boundary=b")
    with pytest.raises(ProblemError) as error:
        read(b" " * (questions.MOST_JSON_BYTES + 1))
    assert error.value.status == 413


@pytest.mark.parametrize("charset", ["punycode", '"IDNA"', "latin-1", "nothing"])
def test_a_form_is_read_as_utf_8_alone(charset):
    # For Python's punycode codec, a field of a megabyte is minutes of work, in which nobody else is answered.
    with pytest.raises(ProblemError, match="the texts of a form are UTF-8") as error:
        read(form(file=b"x", k="3"), f"multipart/form-data; Charset={charset}; boundary=b")
    assert error.value.status == 415
    for same in ("UTF-8", '"utf-8"'):
        assert read(form(file=b"x", k="3"), f"multipart/form-data; charset={same}; boundary=b").k == 3


def test_a_slow_body_is_given_up(monkeypatch):
    monkeypatch.setattr(questions, "READ_SECONDS", 0.05)

    async def never():
        await asyncio.sleep(60)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    with pytest.raises(ProblemError) as error:
        asyncio.run(question_of(Request(scope, never)))
    assert error.value.status == 408


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" + b"[]," * 10_000 + b"1]", "10,000 lists and objects"),
        (b"{" + b'"a":1,' * 10_001 + b'"b":1}', "10,000 names"),
        (b'{"key":[' + b"1," * 250_001 + b"1]}", "250,000 values"),
    ],
    ids=["lists", "names", "values"],
)
def test_json_of_very_many_things_is_refused_unread(monkeypatch, body, said):
    monkeypatch.setattr(questions.json, "loads", lambda _: pytest.fail("read"))
    with pytest.raises(ProblemError, match=f"more than {said}") as error:
        read(body)
    assert error.value.status == 400


def test_a_large_value_is_not_written_out():
    with pytest.raises(ProblemError, match=r"^key = list is no text$"):
        read(b'{"key":[' + b"1," * 9000 + b"1]}")


def test_ids_that_json_would_round_are_texts():
    assert [json_id(2**53), json_id(2**53 + 1)] == [2**53, "9007199254740993"]


def test_what_is_told_of_a_request_is_short_whatever_was_sent():
    assert len(told(ProblemError(400, "\x7f" * (1 << 20))).body) < 6 * MOST_LETTERS + 200
    assert b'"detail": "k is wrong"' in told(ProblemError(400, "k is wrong")).body
