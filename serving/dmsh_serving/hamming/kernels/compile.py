"""Compilation of search kernels, cached on disk where no other user can put code.

Imports numba, so it is itself imported on first use. Arrays reach compiled code as addresses. So read-only,
memory-mapped and unaligned arrays share one compiled function (numba would compile one for each kind), and any thread
can call a function by its address. The caller keeps the arrays alive.

numba's cache on disk notices a change in the file of a function, but not in other files whose code was inlined into
it. So the name of a cached function contains a hash of every source file that can be inlined: the files of this folder
and the contract's constants.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl

from dmsh_serving.files import is_ours

__all__ = ["compiled", "entry"]

_SOURCES: Final = (
    *sorted(Path(__file__).parent.glob("*.py")),
    Path(__file__).parents[2] / "contract.py",
)
# What is cached holds pickled types of numpy, and numpy 1 cannot read those of numpy 2: both may share a checkout.
_SOURCE_HASH: Final = hashlib.sha256(
    b"".join([*(path.read_bytes() for path in _SOURCES), np.__version__.encode()])
).hexdigest()[:16]

_log = logging.getLogger(__name__)
_entries: list[Any] = []  # kept for ever: callers know a function by its address alone


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile to native code that runs without the GIL; ``signature``: a string, a numba type, or None.

    None compiles at the first call, for the types of its arguments.
    """
    return _cached(lambda cache: numba.njit(signature, cache=cache, nogil=True, error_model="numpy"))


def entry(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile to native code with an ``address`` that other compiled code can call from any thread.

    An exception inside it would be printed and lost, so such functions allocate nothing and raise nothing.
    """
    decorate = _cached(lambda cache: numba.cfunc(signature, cache=cache, error_model="numpy"))

    def wrap(function: Callable[..., Any]) -> Any:
        made = decorate(function)
        _entries.append(made)
        return made

    return wrap


def _cached(decorator: Callable[[bool], Callable[..., Any]]) -> Callable[[Callable[..., Any]], Any]:
    """Compile with numba's cache on disk, or without it if there is no place to write it or a file in it is damaged.

    numba tries NUMBA_CACHE_DIR, then the folder of the file, then the user's cache folder. If all are read-only or the
    disk is full, numba raises an error. Such a machine compiles once per process. So does one whose cache other users
    can write: what is in it would be run.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f".{_SOURCE_HASH}"  # numba names the files of its cache by it
        try:
            folder = Path(CompileResultCacheImpl(function).locator.get_cache_path())  # type: ignore[no-untyped-call]
            return decorator(_is_ours(folder))(function)
        except Exception:  # pickle raises nearly any kind; a fault of the function itself is raised again
            return decorator(False)(function)

    return wrap


@functools.cache
def _is_ours(folder: Path) -> bool:
    """Say whether only this user and root can write to a cache folder; the log tells of one that others can."""
    ours = is_ours(folder)
    if not ours:
        _log.warning(
            "%s is not used: other users can write code to it; take that right away, or set NUMBA_CACHE_DIR to a "
            "folder of your own, else searches are compiled at every start",
            folder,
        )
    return ours
