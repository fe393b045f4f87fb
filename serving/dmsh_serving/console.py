"""What every command says: tables for people, JSON for machines, progress on stderr."""

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_serving.errors import InputError
from dmsh_serving.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "JsonOption",
    "SkipBadOption",
    "console",
    "print_table",
    "printable",
    "progress",
    "reporting",
    "speaking",
    "write_json",
]


_MOST_UNSAID: Final = 1000  # lines; more are dropped
_SAY_SECONDS: Final = 1.0  # for what is unsaid at the end


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse a result's place before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"--json {path}: name a file in a folder that exists")
    return path


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the result to this JSON file.", callback=_in_a_folder),
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Skip and count damaged images.")]


def console() -> "Console":
    """Return the console that tables and messages for people go to (stdout)."""
    from rich.console import Console

    # What is printed holds users' paths and keys, in which brackets and colons are no markup.
    stdout = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    if not stdout.is_terminal:
        stdout.width = 200  # a file or a pipe has no edge at which a table would have to wrap
    return stdout


def printable(text: str) -> str:
    """Return ``text`` with escapes for what steers a terminal: a key, or what a server says, may hold anything."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table of formatted cells; columns of numbers are right-aligned, of words left-aligned."""
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numbers = all(row[index][:1].isdigit() or row[index][:1] in "-<>~" for row in rows)
        table.add_column(column, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    stdout = console()
    with stdout.capture() as drawn:
        stdout.print(table)
    typer.echo(drawn.get(), nl=False)  # rich would end the program itself if the reader of a pipe is gone


@contextlib.contextmanager
def reporting(version: str) -> Iterator[None]:
    """While inside, tell of a version that is written. If that fails, it is said on stderr, and the command succeeds.

    An exit code that spoke of a failure would make a script do the change twice.
    """
    try:
        yield
    except (OSError, UnicodeError, InputError) as error:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(OSError, AttributeError):  # what is buffered goes nowhere when the program ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            typer.echo(f"version {version} is written, but the report is not: {printable(str(error))}", err=True)


@contextlib.contextmanager
def progress() -> "Iterator[Progress]":
    """Yield a progress display on stderr; see :mod:`dmsh_serving.progress`."""
    from dmsh_serving.progress import progress as shown

    with shown() as display:
        yield display


@contextlib.contextmanager
def speaking() -> Iterator[Callable[[str], None]]:
    """Yield what says a line on stderr in a thread of its own.

    Whoever watches a server must not wait for a terminal that is held or a log driver that reads nothing.
    """
    lines: queue.Queue[str] = queue.Queue(_MOST_UNSAID)
    ended, stderr = threading.Event(), None if sys.stderr is None else sys.stderr.fileno()

    def say(line: str) -> None:
        with contextlib.suppress(queue.Full):
            lines.put_nowait(line)

    def speak() -> None:
        while stderr is not None:
            line = lines.get()
            if ended.is_set():
                return
            with contextlib.suppress(OSError):
                os.write(stderr, f"{line}\n".encode(errors="replace"))  # holds no lock while it waits
            lines.task_done()

    threading.Thread(target=speak, name="says", daemon=True).start()
    try:
        yield say
    finally:
        end = time.monotonic() + _SAY_SECONDS
        while stderr is not None and lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)
        ended.set()
        say("")  # for the thread to see it


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write ``result`` to ``path`` (whole or not at all); do nothing when ``path`` is None.

    A device or a pipe, such as ``/dev/stdout``, is written to, not replaced.
    """
    if path is None:
        return
    text = (json.dumps(result, indent=2, sort_keys=True) + "\n").encode()
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(text)
    else:
        write_atomically(path, text)
