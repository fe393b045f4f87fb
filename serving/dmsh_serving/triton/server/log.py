"""A server's log: what Triton and its models write, kept in files of bounded size, and read for why a start failed.

They write to a pipe, and a thread here writes the files. So a file can be rotated while they run, a line can be
written as JSON, and news can be noticed in the moment that they are written.
"""

import contextlib
import datetime
import errno
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from dmsh_serving.errors import CheckError, DmshError, InputError, MissingError, OtherModelError

__all__ = ["ServerLog", "error_from_log", "news_of_a_gallery"]

LARGEST_LOG_BYTES: Final = 64 << 20
KEPT_LOGS: Final = 3  # NAME.1, the newest, to NAME.3
_LONGEST_LINE: Final = 64 << 10  # a longer one is written in pieces, of which the first alone is understood
_LINES_REMEMBERED: Final = 5_000  # of one start
_CHARACTERS_REMEMBERED: Final = 4 << 10  # per line
# As Triton writes a line: level, date, time, thread, file, then the text.
_OF_TRITON: Final = re.compile(r'^([IWEF])\d{4} [\d:.]+ \d+ (\S+\.\w+:\d+)\] "?(.*?)"?$')
# As a Python model's logging writes it, see dmsh_serving.triton.backend.
_OF_A_MODEL: Final = re.compile(r"^\S+ ([A-Z]+) (dmsh_[\w.]+): (.*)$")
_LEVELS: Final = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_REQUEST: Final = re.compile(r"\brequest (\S+)")
_FOLLOWER: Final = "dmsh_serving.ranker.follower"
_NEWS: Final = ("goes on serving", "serves in its place", "now serves version")


class ServerLog:
    """The log at ``path`` of one server after another; ``on_line`` is given every line.

    With ``as_json`` a line is an object: ``time`` (UTC), ``level``, ``source``, ``message`` and, if it names one,
    ``request``. Else it is what was written. The file is its owner's, and readable to the owner's group.

    Raises:
        InputError: ``path`` is a link: in a folder that others may write to, it could lead to any file.
    """

    def __init__(
        self, path: Path, *, as_json: bool = False, on_line: Callable[[str], None] = lambda line: None
    ) -> None:
        self.path = path
        self._as_json, self._on_line = as_json, on_line
        self._said: deque[str] = deque(maxlen=_LINES_REMEMBERED)
        self._reader: threading.Thread | None = None
        self._lost = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(_opened(path))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise InputError(f"the log file {path} is a link: name the file that it leads to") from None

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        """Yield a descriptor to write to; what a server that inherits it writes is read until all of it has ended."""
        self.finish()
        read, write = os.pipe()
        self._said.clear()
        self._reader = threading.Thread(target=self._read, args=(read,), name="triton-log", daemon=True)
        self._reader.start()
        try:
            yield write
        finally:
            os.close(write)

    def said(self) -> str:
        """Return what the server that was started last has said so far."""
        return "\n".join(list(self._said))

    def finish(self, seconds: float = 2.0) -> None:
        """Wait until everything that an ended server wrote is read."""
        if self._reader is not None:
            self._reader.join(seconds)

    def _read(self, descriptor: int) -> None:
        kind = {"level": "info", "source": "tritonserver"}
        begins = True  # a line: what goes on with one may hold anything, also what looks like another line
        with os.fdopen(descriptor, "rb") as pipe:
            while data := pipe.readline(_LONGEST_LINE):
                line = data.decode(errors="replace").rstrip("\r\n")
                kind = _kind_of(line, kind) if begins else kind
                self._write(json.dumps(_object(line, kind, begins)) if self._as_json else line)
                if begins:
                    self._said.append(line[:_CHARACTERS_REMEMBERED])
                    with contextlib.suppress(Exception):  # whoever listens, a server must never wait for a full pipe
                        self._on_line(line)
                begins = data.endswith(b"\n")

    def _write(self, line: str) -> None:
        """Write a line; the server must never wait for a full disk, so what cannot be written is counted."""
        try:
            if self.path.exists() and self.path.stat().st_size > LARGEST_LOG_BYTES:
                _rotate(self.path)
            missing = f"{self._lost} lines are missing here: they could not be written\n" if self._lost else ""
            with os.fdopen(_opened(self.path), "ab") as file:
                _put(file, missing + line)
            self._lost = 0
        except OSError:
            self._lost += 1


def _opened(path: Path) -> int:
    """Return a descriptor that appends to a log, never to what a link leads to, and waits for no reader of a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, 0o640)


def _rotate(path: Path) -> None:
    """Rename a log to ``NAME.1``, the one of that name to ``NAME.2``, and so on; the oldest is dropped."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, KEPT_LOGS + 1))]
    for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
        if newer.exists():
            newer.replace(older)


def error_from_log(text: str, log_file: Path) -> DmshError:
    """Return what a server's log says about a start that failed; a model's own error keeps its kind."""
    # A Python model's exception, its line breaks written as backslash and n:
    # "failed to load 'NAME' version 1: Internal: InputError: REASON\n\nAt:\n  FILE(LINE): ..."
    failed = re.findall(r"failed to load '([^'\n]*)' version \d+: (.*?)(?:\\n|\"?$)", text, flags=re.MULTILINE)
    reasons = [(model, re.sub(r"^Internal: (\w+Error): ", "", reason)) for model, reason in failed]
    if reasons:
        kinds = (InputError, OtherModelError, CheckError, MissingError)
        kind = next((kind for kind in kinds if f": {kind.__name__}: " in failed[0][1]), MissingError)
        said = "; ".join(f"{model} does not load: {reason.strip()[:400]}" for model, reason in reasons)
        return kind(f"{said} (log: {log_file})")
    mistakes = _mistakes_in(text)
    if mistakes:
        return InputError(f"{'; '.join(mistakes)}: dmsh-export lint finds the place (log: {log_file})")
    errors: list[str] = re.findall(r"^(?:E\d{4} \S+ \d+ \S+\] |error: )(.*)$", text, flags=re.MULTILINE)
    lines = errors or [line for line in text.splitlines() if line.strip()] or ["its log is empty"]
    return MissingError(f"Triton did not start: {lines[-1].strip()[:400]} (log: {log_file})")


def _mistakes_in(text: str) -> list[str]:
    """Return what Triton says of configurations that it refuses unloaded: of models or, if of none, of ensembles."""
    models = re.findall(
        r"(?:Poll failed for model directory|failed to load model) '([^'\n]*)': (.*?)\"?$", text, flags=re.MULTILINE
    )
    syntax = re.findall(r"Error parsing text-format [\w.]+: (.*)$", text, flags=re.MULTILINE)
    if models:
        said = [f"{model} does not load: {reason.strip()[:300]}" for model, reason in models]
        return [*said, *syntax[:1]]
    ensembles: list[str] = re.findall(r"Invalid argument: (in ensemble .*?)\"?$", text, flags=re.MULTILINE)
    return ensembles[:1]


def news_of_a_gallery(line: str) -> str | None:
    """Return what the ranker says in ``line``: that it serves another version of a gallery, or refuses one."""
    found = _OF_A_MODEL.match(line)
    if found is None or found[2] != _FOLLOWER or not any(news in found[3] for news in _NEWS):
        return None
    return found[3]


def _put(file: BinaryIO, line: str) -> None:
    file.write(line.encode(errors="replace") + b"\n")


def _kind_of(line: str, before: dict[str, str]) -> dict[str, str]:
    """Return level and source of a line; one that says neither (of a traceback) goes on with what was ``before``."""
    if found := _OF_TRITON.match(line):
        return {"level": _LEVELS[found[1]], "source": found[2]}
    if found := _OF_A_MODEL.match(line):
        return {"level": found[1].lower(), "source": found[2]}
    return before


def _object(line: str, kind: dict[str, str], begins: bool) -> dict[str, str]:
    found = (_OF_TRITON.match(line) or _OF_A_MODEL.match(line)) if begins else None
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    told = {"time": time, **kind, "message": found[3] if found else line}
    if begins and (request := _REQUEST.search(told["message"])):
        told["request"] = request[1].rstrip(":;,")
    return told
