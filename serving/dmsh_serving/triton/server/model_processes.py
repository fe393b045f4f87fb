"""The processes of Triton's Python models (stubs), read from /proc."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["all_living", "all_stubs", "bury_orphans", "living_stubs", "processor_seconds"]

PROCESSES = Path("/proc")
_ZOMBIE = "Z"
_STUB_NAME = "triton_python_b"  # of triton_python_backend_stub, cut to the kernel's 15 characters


def all_living(stubs: Iterable[int], processes: Path = PROCESSES) -> bool:
    """Say whether all of these are still living stubs: a fiftieth of the work of finding them."""
    return all(_state(processes / str(stub) / "stat") not in ("", _ZOMBIE) for stub in stubs)


def living_stubs(server: int, processes: Path = PROCESSES) -> frozenset[int]:
    """Return the ids of the stubs that are children of the process ``server``; a zombie is dead."""
    return frozenset(stub for stub, state in _stubs(server, processes) if state != _ZOMBIE)


def all_stubs(server: int, processes: Path = PROCESSES) -> frozenset[int]:
    """Return the ids of the stubs that are children of the process ``server``, with those it has not buried yet."""
    return frozenset(stub for stub, _ in _stubs(server, processes))


def processor_seconds(model: str, server: int, stubs: Iterable[int], processes: Path = PROCESSES) -> float:
    """Return the seconds of the processor that the stubs of ``model`` have had.

    Without a living stub of its own, a model runs in ``server``, whose seconds these then are; 0 if that is gone.
    """
    own = [stub for stub in stubs if f"/{model}/".encode() in _read(processes / str(stub) / "cmdline")]
    ticks = 0
    for process in own or [server]:
        fields = _read(processes / str(process) / "stat").rpartition(b")")[2].split()
        ticks += sum(map(int, fields[11:13]))  # utime and stime, the 14th and 15th of proc_pid_stat(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def bury_orphans(own: int) -> None:
    """Let go of ended processes whose parents ended before, but not of ``own``, which somebody waits for.

    Nobody else does it if this process is the first of a container: each would take one of its processes for good.
    """
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid == own:
                return
            os.waitpid(found.si_pid, 0)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _stubs(server: int, processes: Path) -> list[tuple[int, str]]:
    found: set[int] = set()
    for tasks in processes.glob(f"{server}/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found.update(int(child) for child in tasks.read_text().split())
    states = [(child, _state(processes / str(child) / "stat")) for child in found]
    return [(child, state) for child, state in states if state]


def _state(stat: Path) -> str:
    """Return the letter of a stub's state, "" for what is none."""
    name, _, rest = _read(stat).partition(b"(")[2].decode(errors="replace").rpartition(")")  # cut at 15 bytes
    return rest.split()[0] if name == _STUB_NAME else ""
