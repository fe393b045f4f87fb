"""The shared memory of one server's Python models, and what killed servers left behind.

Each server gets its own region prefix and a lock file of that name, whose lock its processes inherit: the kernel frees
it when the last of them is gone, however it ended. Regions under a free lock belong to nobody and are removed.
"""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

__all__ = ["SHARED_MEMORY", "RegionPrefix", "sweep"]

SHARED_MEMORY = Path("/dev/shm")
_FAMILY = "dmsh-triton-"
_LOCK = ".lock"


class RegionPrefix:
    """A fresh region prefix, held until :meth:`release`; pass ``descriptor`` to the processes that use it."""

    def __init__(self, folder: Path = SHARED_MEMORY) -> None:
        self._folder = folder
        self.name = f"{_FAMILY}{secrets.token_hex(6)}-"
        self.descriptor = os.open(folder / f"{self.name}{_LOCK}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def close_to_others(self) -> None:
        """Let the owner alone open the regions; Triton makes them readable to all, whatever the umask."""
        for region in self._folder.glob(f"{self.name}*"):
            with contextlib.suppress(FileNotFoundError):  # its model ended meanwhile
                region.chmod(0o600)

    def remove_regions(self) -> None:
        """Remove the regions, when no process of the server lives any more."""
        _remove_regions(self._folder, self.name)

    def release(self) -> None:
        """Remove the regions and give the prefix up."""
        self.remove_regions()
        (self._folder / f"{self.name}{_LOCK}").unlink(missing_ok=True)
        os.close(self.descriptor)


def sweep(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove what servers that no longer live left behind; return the names removed."""
    removed: list[str] = []
    for lock in sorted(folder.glob(f"{_FAMILY}*{_LOCK}")):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # swept by another, or another user's
            descriptor = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                removed += _remove_regions(folder, lock.name.removesuffix(_LOCK))
                lock.unlink()
            except BlockingIOError:
                pass  # its server lives
            finally:
                os.close(descriptor)
    return removed


def _remove_regions(folder: Path, prefix: str) -> list[str]:
    regions = [path for path in folder.glob(f"{prefix}*") if not path.name.endswith(_LOCK)]
    for region in regions:
        region.unlink(missing_ok=True)
    return [region.name for region in regions]
