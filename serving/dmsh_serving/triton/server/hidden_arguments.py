"""Arguments that the process list does not show.

Every user of a machine may read every process's arguments (``ps``, ``/proc/PID/cmdline``), but only the owner its
environment, and tritonserver takes its control key as an argument alone. So the kernel is asked to stop the new program
before its first instruction (ptrace, which a parent may do to its child), and the pointers in its argument vector that
lead to placeholders are led to the values in its environment. What the process list shows are the placeholders.
"""

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dmsh_serving.errors import MissingError

__all__ = ["start"]

_REFUSED: Final = 125  # exit code of _STOPPED_PROGRAM
_DETACH: Final = 17  # PTRACE_DETACH of <sys/ptrace.h>
# Asks for a SIGTERM when the thread that started it is gone (PR_SET_PDEATHSIG): a launcher that is killed leaves no
# server behind. Then asks to be stopped at its next exec (PTRACE_TRACEME), and becomes the program.
_STARTER: Final = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None); libc.prctl(1, 15); "
    f"libc.ptrace(0, 0, None, None) and os._exit({_REFUSED}); os.execv(sys.argv[1], sys.argv[1:])"
)
# Fields of /proc/PID/stat, counted from the third (see proc_pid_stat(5)).
_START_STACK, _ENV_START, _ENV_END = 25, 47, 48


def start(
    command: Sequence[str], hidden: Mapping[str, str], environment: Mapping[str, str], **options: Any
) -> "subprocess.Popen[bytes]":
    """Start ``command``, in which each name of ``hidden`` is read by the program as that name's value.

    The program must be a binary, since a script would show the values to the process list when it hands them on; it
    ends with the thread that called this. ``options`` go to :class:`subprocess.Popen`.

    Raises:
        MissingError: it is none, or this machine lets no process trace its child; nothing runs then.
    """
    with Path(command[0]).open("rb") as program:
        if program.read(4) != b"\x7fELF":
            raise MissingError(
                f"{command[0]} is no binary, so its control key could not be hidden: name tritonserver itself"
            )
    starter = [sys.executable, "-ISc", _STARTER]
    process = subprocess.Popen([*starter, *command], env={**environment, **hidden}, **options)
    _, status = os.waitpid(process.pid, 0)
    if not os.WIFSTOPPED(status):
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for: Popen must not wait again
        if process.returncode == _REFUSED:
            raise MissingError(
                "Triton's control key cannot be hidden from other users, because no process may trace its child here: "
                "set kernel.yama.ptrace_scope to 1, or allow ptrace in the container's seccomp profile"
            )
        raise MissingError(f"{command[0]} could not be started (exit code {process.returncode})")
    try:
        _lead_to_environment(process.pid, hidden)
    except BaseException:
        process.kill()
        raise
    finally:
        _detach(process.pid)
    return process


def _lead_to_environment(pid: int, names: Mapping[str, str]) -> None:
    """Change the argument vector of a process that stands before its first instruction."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    stack, env_start, env_end = (int(fields[number]) for number in (_START_STACK, _ENV_START, _ENV_END))
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        size = struct.calcsize("P")

        def read(address: int, count: int) -> bytes:
            memory.seek(address)
            return memory.read(count)

        environment = b"\0" + read(env_start, env_end - env_start)
        (count,) = struct.unpack("P", read(stack, size))
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        for index, argument in enumerate(arguments[:count]):
            if argument.decode(errors="replace") in names:
                place = environment.index(b"\0" + argument + b"=")
                value = env_start + place + len(argument) + 1
                memory.seek(stack + size * (1 + index))
                memory.write(struct.pack("P", value))


def _detach(pid: int) -> None:
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    trace.argtypes, trace.restype = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p), ctypes.c_long
    trace(_DETACH, pid, None, None)
