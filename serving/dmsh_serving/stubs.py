"""The processes of Triton's Python models (stubs), read from /proc."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

PROCESSES = Path("/proc")
_STUB_NAME = "triton_python_b"  # of triton_python_backend_stub, cut to the kernel's 15 characters


def all_living(stubs: Iterable[int], processes: Path = PROCESSES) -> bool:
    """Say whether all of these are still living stubs: a fiftieth of the work of finding them."""
    return all(_is_living_stub(processes / str(stub) / "stat") for stub in stubs)


def living_stubs(server: int, processes: Path = PROCESSES) -> frozenset[int]:
    """Return the ids of the stubs that are children of the process ``server``; a zombie is dead."""
    found: set[int] = set()
    for tasks in processes.glob(f"{server}/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found.update(int(child) for child in tasks.read_text().split())
    return frozenset(child for child in found if _is_living_stub(processes / str(child) / "stat"))


def _is_living_stub(stat: Path) -> bool:
    try:
        text = stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    name, rest = text[text.index("(") + 1 :].rsplit(")", 1)
    return name == _STUB_NAME and rest.split()[0] != "Z"
