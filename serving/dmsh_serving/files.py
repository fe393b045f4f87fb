"""Files and folders that are whole or not there, and what names a file's content."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dmsh_serving.errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name beside ``path``, fsync, then rename over it."""
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder: create it, or write elsewhere")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that names no file: a disk that is full while one is written is not told which."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def replace_folder(new: Path, target: Path) -> None:
    """Rename the folder ``new``, of the same file system, to ``target``, whose folder it replaces if there is one.

    Whatever stops this, Ctrl-C too, ``target`` is then the old folder or the new one, whole.
    """
    old = new.with_name(new.name + ".old")
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def umask() -> int:
    """Return the permissions that this process takes from what it creates; temporary files ignore them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
