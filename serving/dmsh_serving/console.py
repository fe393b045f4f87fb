"""How every command talks: one line per error, the right exit code, tables for people, JSON for machines."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsh_serving import __version__
from dmsh_serving.errors import DmshError, InputError, MissingError
from dmsh_serving.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "JsonOption",
    "SkipBadOption",
    "console",
    "let_openmp_sleep",
    "make_app",
    "print_table",
    "progress",
    "run",
    "write_json",
]

EX_SOFTWARE = 70  # of sysexits.h
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_ENDED_BY = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}


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


def make_app(purpose: str, name: str | None = None) -> typer.Typer:
    """Return an empty application with plain help, which answers fast.

    Args:
        purpose: one sentence, shown by ``--help``.
        name: the name of a program, which gets ``--version`` and shell completion; None for a group of commands.
    """
    app = typer.Typer(
        help=purpose,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=name is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 something this machine lacks, "
        "70 a fault of this tool itself, 130 interrupted. --debug shows the traceback of an error.",
    )
    if name is not None:

        def show(asked: bool) -> None:
            if asked:
                typer.echo(f"{name} {__version__}")
                raise typer.Exit

        @app.callback()
        def program(
            version: Annotated[
                bool, typer.Option("--version", help="Show the version and exit.", callback=show, is_eager=True)
            ] = False,
        ) -> None:
            pass

    return app


def let_openmp_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise. Call it before PyTorch loads.

    By default they spin, which pays only on a machine that does nothing else. Beside another busy process, PyTorch with
    two threads on two cores became 4 to 30 times slower by it. The variable is OpenMP's own:
    https://www.openmp.org/spec-html/5.0/openmpse55.html
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(app: typer.Typer, *, end_within: float | None = None) -> None:
    """Run ``app`` on the command line; every error becomes one line on stderr and an exit code.

    ``end_within`` seconds after SIGTERM the process ends even in the middle of one long call of a library, such as the
    backward pass of a large network: Python handles a signal only between two of its own instructions. It is for
    programs whose files are written whole or not at all.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    with _ended_within(end_within):
        _run(app, arguments, debug)


def _run(app: typer.Typer, arguments: list[str], debug: bool) -> None:
    try:
        sys.exit(app(args=arguments, standalone_mode=False))
    except SystemExit as end:
        if end.code in _ENDED_BY:  # some versions of typer turn Ctrl-C into this
            _fail(_ENDED_BY[end.code], end.code, debug)
        raise
    except DmshError as error:
        _fail(str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        name = error.name or "?"
        _fail(f"the package {name} is not installed: {_how_to_install(name)}", MissingError.exit_code, debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away: nothing left to tell it
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", InputError.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail(_ENDED_BY[_INTERRUPTED], _INTERRUPTED, debug)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", MissingError.exit_code, debug)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{error}\n")
            sys.exit(InputError.exit_code)
        # Usage errors: typer brings its own copy of click's exceptions, or uses click's, by version.
        if hasattr(error, "format_message"):
            _fail(f"{error.format_message()} (see --help)", InputError.exit_code, debug)
        # Not 1, which says that a check failed.
        _fail(f"internal: {type(error).__name__}: {error}; run with --debug to see where", EX_SOFTWARE, debug)


def _end(number: int, frame: object) -> None:
    """End as Ctrl-C does, so that what is open is closed and what is temporary is removed."""
    sys.exit(128 + number)


EXTRA_OF_PACKAGE = {
    "torch": "export", "torchvision": "export", "timm": "export", "onnx": "export", "onnxscript": "export",
    "scipy": "export", "onnxruntime": "export", "tritonclient": "client", "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx", "openvino": "openvino", "starlette": "web", "uvicorn": "web", "jinja2": "web",
    "matplotlib": "demo", "mlxtend": "demo", "google": "export", "ml_dtypes": "export",
    "clickhouse_connect": "clickhouse", "ray": "ray", "pyarrow": "parquet",
}  # fmt: skip


def _how_to_install(module: str) -> str:
    if module == "onnxruntime":  # the extra's package is the one for CUDA, 400 MB more
        return "pip install onnxruntime (with an NVIDIA GPU: onnxruntime-gpu)"
    extra = EXTRA_OF_PACKAGE.get(module.split(".")[0])
    return f"pip install 'dmsh-toolkit[{extra}]'" if extra else f"pip install {module}"


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    sys.exit(code)


def console() -> "Console":
    """Return the console that tables and messages for people go to (stdout)."""
    from rich.console import Console

    # What is printed holds users' paths and keys, in which brackets and colons are no markup.
    stdout = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
    if not stdout.is_terminal:
        stdout.width = 200  # a file or a pipe has no edge at which a table would have to wrap
    return stdout


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table of formatted cells; columns of numbers are right-aligned, of words left-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numbers = all(row[index][:1].isdigit() or row[index][:1] in "-<>~" for row in rows)
        table.add_column(column, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


@contextlib.contextmanager
def progress() -> "Iterator[Progress]":
    """Yield a progress display on stderr; see :mod:`dmsh_serving.progress`."""
    from dmsh_serving.progress import progress as shown

    with shown() as display:
        yield display


@contextlib.contextmanager
def _ended_within(seconds: float | None) -> Iterator[None]:
    """While inside, end the process ``seconds`` after SIGTERM, unless it has ended by itself; None waits for ever."""
    if seconds is None or signal.getsignal(signal.SIGTERM) is not _end:
        yield
        return
    told, tell = socket.socketpair()
    tell.setblocking(False)
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    left = threading.Event()

    def watch() -> None:
        while (number := told.recv(1)) and number[0] != signal.SIGTERM:
            pass
        if number:
            time.sleep(seconds)
            if not left.is_set():  # else run has said it
                sys.stderr.write(f"error: {_ENDED_BY[_TERMINATED]}\n")
                sys.stderr.flush()
            os._exit(_TERMINATED)

    threading.Thread(target=watch, name="ends-within", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        tell.close()


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write ``result`` to ``path`` (whole or not at all); do nothing when ``path`` is None."""
    if path is not None:
        write_atomically(path, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
