"""Run a program: every error becomes one line on stderr and an exit code, and a signal ends it in order."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import typer

from dmsh_serving.console import printable
from dmsh_serving.errors import DmshError, InputError, MissingError

__all__ = ["let_openmp_sleep", "run"]

EX_SOFTWARE = 70  # of sysexits.h
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_ENDED_BY = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}


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
    sys.stderr.write("error: " + printable(" ".join(message.split())) + "\n")
    sys.exit(code)


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
