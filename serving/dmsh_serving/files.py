"""Files and folders that are whole or not there, also after a crash or a power loss; and what names a file's content.

What a function here has written is on the disk when it returns: the data are fsynced before they get their name, and
the folder that holds the name afterwards.
"""

import contextlib
import ctypes
import errno
import grp
import hashlib
import io
import os
import pwd
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from dmsh_serving.errors import InputError

__all__ = [
    "ABSENT",
    "files_below",
    "fsync_folder",
    "is_ours",
    "move_durably",
    "naming",
    "open_regular",
    "read_regular",
    "replace_folder",
    "sha256_of_file",
    "state_of",
    "temporary_beside",
    "whole_file",
    "write_atomically",
]

ABSENT: Final = "absent"
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # https://man7.org/linux/man-pages/man2/renameat2.2.html
_CANNOT_EXCHANGE: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read it; a pipe or a device, of which a read may wait or go on for ever, is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says why.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else a pipe is opened once somebody writes to it
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a file that :func:`open_regular` opens.

    Raises:
        OSError: it does not open it, or the file is larger than ``most_bytes``; ``strerror`` says why.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes", str(path))
        return file.read(size)


@contextlib.contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a temporary file beside ``path``, which takes this name once the block has ended without an error.

    Args:
        path: the name; a file that has it is replaced.
        mode: permissions of the file, before the process's umask.

    Raises:
        InputError: the folder of ``path`` does not exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder: create it, or write elsewhere")
    temporary = temporary_beside(path)
    # Made with its permissions: whoever asks for the umask, to apply it later, sets another one for a moment.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` as the whole content of ``path``; see :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(data)


def move_durably(made: Path, final: Path) -> None:
    """Give a finished file its final name on the same file system; a file that has it is replaced."""
    _fsync(made)
    made.replace(final)
    fsync_folder(final.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that names no file: the error of a full disk does not say which file is written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def is_ours(path: Path) -> bool:
    """Say whether ``path`` belongs to this user or root, and others may not write to it.

    A group may if it is the user's own, which has the user's name.
    """
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        return False
    if not status.st_mode & stat.S_IWGRP:
        return True
    try:
        return grp.getgrgid(status.st_gid).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # one of them has no name
        return False


def files_below(folder: Path) -> Iterator[str]:
    """Yield the path below ``folder`` of each file, in any order; hidden files and folders are left out.

    ``os.walk`` takes a folder that cannot be listed for empty, and one that cannot be looked at for a file.

    Raises:
        InputError: a folder in it is a link, which could lead out of it or around in circles.
        OSError: a folder cannot be listed or looked at; it is named.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with naming(folder / below), os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_symlink() and Path(entry.path).is_dir():
                    raise InputError(f"{entry.path} is a link to a folder: give the folder itself, or copy it")
                else:
                    yield below + entry.name


def replace_folder(new: Path, target: Path) -> None:
    """Give the folder ``new`` the name ``target`` on the same file system; a folder that has it is replaced.

    If the process is killed at any moment, ``target`` is the old folder or the new one, whole. A file system that
    cannot exchange two names (NFS, for one) leaves a moment without ``target``, which only a kill can hit.
    """
    _fsync_all(new)
    old = new.with_name(new.name + ".old")
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        old = new
    else:
        try:
            target.rename(old)
            new.rename(target)
        finally:
            if not target.exists():
                old.rename(target)
    fsync_folder(target.parent)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def state_of(path: Path, between: str = " ", *, by_change: bool = False) -> str:
    """Return size and time of modification of a file, as a text, ``between`` them; ``ABSENT`` if there is none.

    Files that come out of archives may have one size and one time, whatever they hold. What they cannot bring is the
    time at which the file itself was last changed, which comes third ``by_change``. But every copy has another, and
    ``chmod`` changes it.

    Raises:
        OSError: the disk does not say.
    """
    try:
        found = path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return ABSENT
    times = (found.st_mtime_ns, found.st_ctime_ns) if by_change else (found.st_mtime_ns,)
    return between.join(map(str, (found.st_size, *times)))


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_beside(path: Path) -> Path:
    """Return a name in the folder of ``path`` that nothing has, for what is to be ``path`` once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def fsync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk."""
    _fsync(folder)


def _fsync_all(folder: Path) -> None:
    with naming(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _fsync_all(Path(entry.path))
            else:
                _fsync(Path(entry.path))
    fsync_folder(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return False if this system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # musl has none before 1.2.5
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
