"""The folders that servers which were killed left in the temporary folder.

At each start the Python backend makes an empty folder, ``python_env_`` and six letters, for environments to unpack
there, and removes it at an orderly end only. Nothing in a folder says whose it is, but its server is older than it is:
a folder made before the oldest living server began has none.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

__all__ = ["sweep"]

_PROCESSES: Final = Path("/proc")
_SERVER: Final = "tritonserver"
_CAUTION_SECONDS: Final = 60.0  # the clock may have been set; a server may have begun since the processes were listed


def sweep(folder: Path | None = None, processes: Path = _PROCESSES) -> list[str]:
    """Remove our own empty folders that are older than every living server; return the names removed."""
    place = folder or Path(tempfile.gettempdir())
    oldest = min([time.time(), *_starts(processes)]) - _CAUTION_SECONDS
    removed = []
    for path in sorted(place.glob("python_env_??????")):
        with contextlib.suppress(OSError):  # gone meanwhile; or not empty, which rmdir leaves alone
            stat = path.lstat()
            if stat.st_uid == os.geteuid() and stat.st_mtime < oldest:
                path.rmdir()
                removed.append(path.name)
    return removed


def _starts(processes: Path) -> list[float]:
    """Return when each living server began, in seconds since 1970."""
    found = []
    ticks = os.sysconf("SC_CLK_TCK")
    booted = next(
        int(line.split()[1]) for line in (processes / "stat").read_text().splitlines() if line.startswith("btime")
    )
    for stat in processes.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name, _, rest = stat.read_text(errors="replace").partition("(")[2].rpartition(")")
            if name == _SERVER:
                found.append(booted + int(rest.split()[19]) / ticks)  # starttime, the 22nd of proc_pid_stat(5)
    return found
