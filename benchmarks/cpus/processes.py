"""The programs of emulated machines, which end at once when this program does."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["end_all", "interrupted_by_signals", "run"]

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_lock = threading.Lock()
_running: set["subprocess.Popen[str]"] = set()
_is_ending = False


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """In this context, SIGTERM and a closed terminal interrupt as Ctrl-C does, which leaves nothing running.

    A signal that is ignored stays ignored, so that nohup outlives its terminal.
    """
    heard = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: Sequence[str], environment: dict[str, str], seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end and return what it wrote; an interruption or :func:`end_all` ends all it started too.

    Raises:
        subprocess.TimeoutExpired: it did not end within ``seconds``; it is ended.
        InterruptedError: :func:`end_all` ran before.
    """
    with _lock:
        if _is_ending:
            raise InterruptedError("the comparison is being ended")
        # A session of its own: its id is that of all processes that the program starts.
        process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        _running.add(process)
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        _end(process)
        process.communicate()
        raise
    finally:
        with _lock:
            _running.discard(process)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def end_all() -> None:
    """End every program that :func:`run` has running in any thread, and let none start from now on."""
    global _is_ending
    with _lock:
        _is_ending = True
        for process in _running:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    # Though it may have ended: what it started keeps its group, and the pipes that its reader waits for.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
