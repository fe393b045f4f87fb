"""What a request asks, or why it is refused.

It is a JSON object, a form with a file, or the bytes of a file with parameters in the address.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from dmsh_serving.contract import MAX_K
from dmsh_serving.gallery.header import is_version
from dmsh_serving.hamming.inputs import checked_radius
from dmsh_serving.web.codes.ranking import Cursor
from dmsh_serving.web.http.forms import parts_of_form
from dmsh_serving.web.http.problems import ProblemError

__all__ = ["MOST_JSON_BYTES", "Box", "Example", "Question", "json_id", "keys_of", "question_of"]

DEFAULT_PAGE: Final = 50
MOST_EXAMPLES: Final = 64
MOST_REGIONS: Final = 4  # whole images are decoded for them
MOST_IDS: Final = 100_000
_TOO_MANY_IDS: Final = f"ids is a list of at most {MOST_IDS:,} ids"
MOST_KEYS: Final = 100
MOST_COLUMNS: Final = 100
MOST_VALUES: Final = 1000  # of a column
MOST_EXACT_IN_JSON: Final = 2**53
MOST_JSON_BYTES: Final = 4 << 20
_MOST_BRACKETS: Final = 10_000  # of the lists and objects of a body, of which a question needs some hundred
_MOST_NAMES: Final = 10_000
_MOST_VALUES: Final = 250_000  # ids, and of each column of a filter
READ_SECONDS: Final = 30.0  # for a body to arrive
_NUMBERS: Final = ("k", "radius")
_SAID: Final = {"true": True, "1": True, "false": False, "0": False}
_WHERE: Final = "where."
_EXAMPLE: Final = {"key", "id", "code", "box"}

Box = tuple[float, float, float, float]
"""Left, top, width and height of a region, as shares of the upright image's."""


@dataclass(frozen=True)
class Example:
    """One image to be like or unlike: one of ``file`` (bytes), ``key``, ``number`` (an id) or ``code``.

    Key and number together are the image with both or, if there is none, the one with the key.
    """

    file: bytes | None = None
    key: str | None = None
    number: int | None = None
    code: bytes | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Question:
    """One search.

    Attributes:
        like, unlike: the examples.
        k: the most images to answer with.
        radius: the largest score.
        ids: only images with these ids.
        where: only images with one of these values, for each column of the metadata.
        after: only images after this one.
        version: the version of the gallery that ``after`` was found in.
        fingerprint: of the model that the examples' codes are of.
        explain: time each step by itself, and return the logits.
    """

    like: tuple[Example, ...]
    unlike: tuple[Example, ...] = ()
    k: int = DEFAULT_PAGE
    radius: int | None = None
    ids: tuple[int, ...] | None = None
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    after: Cursor | None = None
    version: str | None = None
    fingerprint: str | None = None
    explain: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether Triton's ranker alone could answer it: one example to be like, and no filter by metadata."""
        return len(self.like) == 1 and not self.unlike and not self.where

    @property
    def is_first(self) -> bool:
        """Whether it is plain, and asks for the first page in whichever version is served."""
        return self.is_plain and self.after is None and self.version is None

    @property
    def regions(self) -> int:
        """How many examples are regions of images."""
        return sum(example.box is not None for example in (*self.like, *self.unlike))

    @property
    def files(self) -> int:
        """How many examples are files that came with it."""
        return sum(example.file is not None for example in (*self.like, *self.unlike))

    @property
    def allowed_ids(self) -> npt.NDArray[np.int64] | None:
        """The ids of ``ids``, (M,)."""
        return None if self.ids is None else np.array(self.ids, np.int64)


_QUESTION: Final = {"key"} | {each.name for each in fields(Question)}


async def question_of(request: Request) -> Question:
    """Read the search that a request asks for.

    Raises:
        ProblemError: the body is too long or too slow, or says something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(READ_SECONDS):
            if kind == "application/json":
                return _from_json(await _json(request))
            if kind == "multipart/form-data":
                return await _from_form(request)
            if kind.startswith("image/") or kind == "application/octet-stream":
                return _from_flat(list(request.query_params.multi_items()), await request.body())
    except TimeoutError:
        raise ProblemError(408, f"the request did not arrive within {READ_SECONDS:g} s") from None
    raise ProblemError(415, "send JSON, a form with a file, or an image as application/octet-stream")


async def keys_of(request: Request) -> list[str]:
    """Read the keys that a request for several thumbnails names.

    Raises:
        ProblemError: the body is too long or too slow, or says something else.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _json(request)
    except TimeoutError:
        raise ProblemError(408, f"the request did not arrive within {READ_SECONDS:g} s") from None
    keys = body.get("keys") if isinstance(body, dict) and body.keys() == {"keys"} else None
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(keys) > MOST_KEYS:
        raise ProblemError(400, f"the body is an object with 'keys': a list of at most {MOST_KEYS} texts")
    return keys


async def _json(request: Request) -> Any:
    if int(request.headers.get("content-length", "0")) > MOST_JSON_BYTES:
        raise ProblemError(413, f"a JSON body has at most {MOST_JSON_BYTES:,} bytes")
    return _parsed(await request.body(), "the body")


def _parsed(text: bytes, what: str) -> Any:
    if len(text) > MOST_JSON_BYTES:
        raise ProblemError(413, f"JSON has at most {MOST_JSON_BYTES:,} bytes")
    # Each takes the loop that answers everybody 60 ns, and a name some 600.
    for parts, count, most in (
        ("lists and objects", text.count(b"[") + text.count(b"{"), _MOST_BRACKETS),
        ("names", text.count(b'":'), _MOST_NAMES),
        ("values", text.count(b","), _MOST_VALUES),
    ):
        if count > most:
            raise ProblemError(400, f"{what} has more than {most:,} {parts}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, f"{what} is not JSON: {error}") from None


async def _from_form(request: Request) -> Question:
    files, said = await parts_of_form(request)
    if [name for name, _ in files] != ["file"]:
        raise ProblemError(400, "a form has one file, in the field 'file'")
    return _from_flat(said, files[0][1])


def _from_flat(said: list[tuple[str, str]], file: bytes) -> Question:
    """Read a search by ``file`` whose other parts are names and texts."""
    body: dict[str, Any] = {}
    box, where = None, dict[str, list[str]]()
    for name, text in said:
        if name in _NUMBERS and name not in body:
            body[name] = _whole(name, text)
        elif name == "box" and box is None:
            box = _box([_real(name, part) for part in text.split(",")])
        elif name == "ids" and name not in body:
            if text.count(",") > MOST_IDS:  # each is read in the loop that answers everybody
                raise ProblemError(400, _TOO_MANY_IDS)
            body["ids"] = [_whole("ids", part) for part in text.split(",") if part.strip()]
        elif name == "fingerprint" and name not in body:
            body[name] = text
        elif name == "explain" and name not in body and text in _SAID:
            body["explain"] = _SAID[text]
        elif name == "where" and name not in body:  # whole, since a browser changes line breaks and names of fields
            body[name] = _parsed(text.encode(errors="surrogatepass"), name)
        elif name.startswith(_WHERE):
            where.setdefault(name.removeprefix(_WHERE), []).append(text)
        else:
            known = "k, radius, box, ids, fingerprint, explain, where, where.COLUMN"
            raise ProblemError(400, f"{name!r} is said twice, or is none of {known}")
    if where and body.setdefault("where", where) is not where:
        raise ProblemError(400, "give 'where' or 'where.COLUMN', not both")
    return _question(body, like=(Example(file=file, box=box),))


def _from_json(body: Any) -> Question:
    if not isinstance(body, dict):
        raise ProblemError(400, "the body is no JSON object")
    _only(body, _QUESTION, "a search")
    if "key" in body and "like" in body:
        raise ProblemError(400, "give 'key' or 'like', not both")
    like = [{"key": body["key"]}] if "key" in body else body.get("like", [])
    return _question(body, like=_examples(like, "like"), unlike=_examples(body.get("unlike", []), "unlike"))


def _question(body: Mapping[str, Any], *, like: tuple[Example, ...], unlike: tuple[Example, ...] = ()) -> Question:
    count = len(like) + len(unlike)
    if not 1 <= count <= MOST_EXAMPLES:
        raise ProblemError(400, f"a search has 1 to {MOST_EXAMPLES} examples, this one has {count}")
    k = body.get("k", DEFAULT_PAGE)
    if not _is_whole(k) or not 1 <= k <= MAX_K:
        raise ProblemError(400, f"k = {_shown(k)} is out of range: ask for 1 to {MAX_K} images")
    radius = body.get("radius")
    if radius is not None:
        if not _is_score(radius):
            raise ProblemError(400, f"radius = {_shown(radius)} is no whole number of 32 bits")
        if not unlike:
            checked_radius(radius)
    explain = body.get("explain", False)
    if not isinstance(explain, bool):
        raise ProblemError(400, "explain is true or false")
    version = body.get("version")
    if version is not None and not (isinstance(version, str) and is_version(version)):
        raise ProblemError(400, "version is the gallery_version of the answer before")
    fingerprint = body.get("fingerprint")
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ProblemError(400, "fingerprint is the one that /v1/gallery gives")
    question = Question(
        like=like,
        unlike=unlike,
        k=k,
        radius=radius,
        ids=_ids(body.get("ids")),
        where=_where(body.get("where", {})),
        after=_cursor(body.get("after")),
        version=version,
        fingerprint=fingerprint,
        explain=explain,
    )
    if question.regions > MOST_REGIONS:
        raise ProblemError(400, f"a search has at most {MOST_REGIONS} regions, this one has {question.regions}")
    return question


def _examples(given: Any, name: str) -> tuple[Example, ...]:
    if not isinstance(given, list):
        raise ProblemError(400, f"{name!r} is a list of examples")
    return tuple(example_of(each) for each in given[: MOST_EXAMPLES + 1])


def example_of(given: Any) -> Example:
    """Return the example that a JSON object names by its key, id or code.

    Raises:
        ProblemError: it names none, or several.
    """
    if not isinstance(given, dict):
        raise ProblemError(400, "an example is an object with a key, an id or a code")
    _only(given, _EXAMPLE, "an example")
    if given.keys() - {"box"} not in ({"key"}, {"id"}, {"code"}, {"key", "id"}):
        raise ProblemError(400, "an example has one of key, id and code, or key and id")
    key, code, box = given.get("key"), given.get("code"), given.get("box")
    if "key" in given and not isinstance(key, str):
        raise ProblemError(400, f"key = {_shown(key)} is no text")
    if box is not None and key is None:
        raise ProblemError(400, "a box is drawn in an image: give it with a key or a file")
    try:
        packed = None if code is None else bytes.fromhex(code)
    except (TypeError, ValueError):
        raise ProblemError(400, f"code = {_shown(code)} is not in hexadecimal digits") from None
    return Example(
        key=key,
        number=_id(given["id"]) if "id" in given else None,
        code=packed,
        box=None if box is None else _box(box),
    )


def _box(given: Any) -> Box:
    if not isinstance(given, list) or len(given) != 4 or not all(_is_number(each) for each in given):
        raise ProblemError(400, "box is left, top, width and height, as shares of the image")
    left, top, width, height = map(float, given)
    # A share that was rounded may pass the edge by a hair.
    if not (left >= 0 and top >= 0 and width > 0 and height > 0 and left + width <= 1.001 and top + height <= 1.001):
        raise ProblemError(400, f"box = {given} is not inside the image: shares are from 0 to 1")
    return left, top, width, height


def _ids(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > MOST_IDS:
        raise ProblemError(400, _TOO_MANY_IDS)
    return tuple(_id(each) for each in given)


def _id(given: Any) -> int:
    """Return an id, which a program that has no whole numbers beyond 2^53 gives as text."""
    number = _whole("id", given) if isinstance(given, str) else given
    if not _is_whole(number) or not 0 <= number < 2**63:
        raise ProblemError(400, f"id = {_shown(given)} is out of range: ids are whole numbers from 0 to 2^63 - 1")
    return int(number)


def json_id(number: int) -> int | str:
    """Return an id as JSON can carry it: beyond 2^53, JavaScript would round it, so it is a text there."""
    return number if number <= MOST_EXACT_IN_JSON else str(number)


def _where(given: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(given, dict) or not all(
        isinstance(values, list) and values and all(isinstance(value, str) for value in values)
        for values in given.values()
    ):
        raise ProblemError(400, "where is an object: for each column a list of values, texts")
    if len(given) > MOST_COLUMNS or any(len(values) > MOST_VALUES for values in given.values()):
        raise ProblemError(400, f"where has at most {MOST_COLUMNS} columns, and {MOST_VALUES:,} values of each")
    return tuple((column, tuple(values)) for column, values in sorted(given.items()))


def _cursor(given: Any) -> Cursor | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"distance", "id"} or not _is_score(given["distance"]):
        raise ProblemError(400, "after is an object with the distance and the id of an image")
    return Cursor(given["distance"], _id(given["id"]))


def _only(given: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = given.keys() - known
    if unknown:
        raise ProblemError(400, f"{what} has no {min(unknown)!r}: it has {', '.join(sorted(known))}")


def _shown(value: Any) -> str:
    """Return a value that was sent, or its kind: a large one would take long to write out."""
    return type(value).__name__ if isinstance(value, (list, dict)) else repr(value)


def _whole(name: str, text: str) -> int:
    if not text.strip().removeprefix("-").isdigit() or not text.isascii() or len(text) > 20:
        raise ProblemError(400, f"{name} = {text!r} is no whole number")
    return int(text)


def _real(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProblemError(400, f"{name}: {text!r} is no number") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_score(value: Any) -> bool:
    return _is_whole(value) and abs(value) < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e9
