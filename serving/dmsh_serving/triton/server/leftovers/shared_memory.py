"""The shared memory of one server's Python models, and what killed servers left behind.

Each server gets its own region prefix and a lock file of that name, whose lock its processes inherit: the kernel frees
it when the last of them is gone, however it ended. Regions under a free lock belong to nobody and are removed.

Every user of a machine may put files and links of any name beside ours: only our own plain files are touched, and what
cannot be done to one of them is logged and hinders nothing.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["SHARED_MEMORY", "RegionPrefix", "sweep"]

SHARED_MEMORY: Final = Path("/dev/shm")
_FAMILY: Final = "dmsh-triton-"
_LOCK: Final = ".lock"
# The whole name: one that is shorter would be the beginning of other servers' names too.
_LOCK_NAME: Final = re.compile(rf"({_FAMILY}[0-9a-f]{{12}}-){re.escape(_LOCK)}")
_log = logging.getLogger(__name__)


class RegionPrefix:
    """A fresh region prefix, held until :meth:`release`; pass ``descriptor`` to the processes that use it."""

    def __init__(self, folder: Path = SHARED_MEMORY) -> None:
        self._folder = folder
        self.name = f"{_FAMILY}{secrets.token_hex(6)}-"
        self.descriptor = os.open(folder / f"{self.name}{_LOCK}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def close_to_others(self) -> None:
        """Let the owner alone open the regions; Triton makes them readable to all, whatever the umask."""
        for region in _regions(self._folder, self.name):
            with _alone(region), _opened(region, os.O_RDONLY) as descriptor:
                os.fchmod(descriptor, 0o600)

    def are_full(self, permitted_bytes: int, wanted_bytes: int) -> bool:
        """Say whether the regions hold more than ``permitted_bytes``, and too little is left to add ``wanted_bytes``.

        A region grows with its model's largest batch, and never shrinks.
        """
        status = os.statvfs(self._folder)
        if status.f_bavail * status.f_frsize >= wanted_bytes:
            return False
        held = 0
        for region in _regions(self._folder, self.name):
            with _alone(region):
                held += region.lstat().st_blocks * 512
        return held > permitted_bytes

    def remove_regions(self) -> None:
        """Remove the regions, when no process of the server lives any more."""
        _remove_regions(self._folder, self.name)

    def release(self) -> None:
        """Remove the regions and give the prefix up."""
        self.remove_regions()
        lock = self._folder / f"{self.name}{_LOCK}"
        with _alone(lock):
            lock.unlink()
        os.close(self.descriptor)


def sweep(folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove what servers that no longer live left behind; return the names removed."""
    removed: list[str] = []
    for lock in _own_files(folder, f"{_FAMILY}*{_LOCK}"):
        if named := _LOCK_NAME.fullmatch(lock.name):
            with _alone(lock), _opened(lock, os.O_RDWR) as descriptor, contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its server lives
                removed += _remove_regions(folder, named[1])
                lock.unlink()
    return removed


def _remove_regions(folder: Path, prefix: str) -> list[str]:
    removed = []
    for region in _regions(folder, prefix):
        with _alone(region):
            region.unlink()
            removed.append(region.name)
    return removed


def _regions(folder: Path, prefix: str) -> list[Path]:
    return [path for path in _own_files(folder, f"{prefix}*") if not path.name.endswith(_LOCK)]


def _own_files(folder: Path, pattern: str) -> list[Path]:
    """Return the plain files of this user, by name."""
    found = []
    for path in sorted(folder.glob(pattern)):
        with _alone(path):
            if _is_own_file(path.lstat()):
                found.append(path)
    return found


def _is_own_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open one of our own plain files: it may have become a link, or another user's, since it was looked for."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not _is_own_file(os.fstat(descriptor)):
            raise FileNotFoundError
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let what fails for ``path`` fail for it alone; that it is gone meanwhile is no failure."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("%s is left as it is: %s", path, error)
