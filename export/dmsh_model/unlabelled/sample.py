"""A sample of the files of a folder in memory that does not grow with the folder."""

import hashlib
import heapq
from collections.abc import Iterable
from pathlib import Path

from dmsh_serving.errors import InputError
from dmsh_serving.files import files_below

__all__ = ["sampled_files", "smallest"]


def sampled_files(folder: Path, count: int, seed: int) -> list[str]:
    """Return at most ``count`` paths below ``folder``, in an order that is random but the same for the same names.

    Every subfolder is looked into; hidden files and folders are left out.

    Raises:
        InputError: no such folder, no files in it, or a link to a folder, which could lead out of it.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: give a folder of images")
    chosen = smallest(files_below(folder), count, seed)
    if not chosen:
        raise InputError(f"{folder} holds no files: give a folder of images")
    return chosen


def smallest(names: Iterable[str], count: int, seed: int) -> list[str]:
    """Return the ``count`` names with the smallest hashes, sorted by them: a uniform sample of ``names``."""

    def order(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{name}".encode(errors="surrogateescape")).digest()

    return heapq.nsmallest(count, names, key=order)
