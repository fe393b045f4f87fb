"""Compilation of search kernels, cached on disk.

Imports numba, so it is itself imported on first use. Arrays reach compiled code as addresses: read-only,
memory-mapped and unaligned arrays then share one compiled function (numba would compile each kind again), and
one function can be called by its address from any thread. The caller keeps the arrays alive.

numba's cache on disk notices a change of the file that a function is in, but not of the files that something in it was
inlined from. So the name of a cached function contains a hash of every source file that can be inlined: those of this
folder, and the contract's constants.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba

_SOURCES: Final = (
    *sorted(Path(__file__).parent.glob("*.py")),
    Path(__file__).parents[2] / "contract.py",
)
_SOURCE_HASH: Final = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]

_entries: list[Any] = []  # known to others by address alone: two threads may compile one at the same time, both stay


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile to native code that runs without the GIL; the signature is numba's, a string or made of its types."""
    return _cached(lambda cache: numba.njit(signature, cache=cache, nogil=True, error_model="numpy"))


def entry(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile to native code whose ``.address`` other compiled code can call, from any thread.

    An exception inside would be printed and lost, so such functions allocate nothing and raise nothing.
    """
    decorate = _cached(lambda cache: numba.cfunc(signature, cache=cache, error_model="numpy"))

    def wrap(function: Callable[..., Any]) -> Any:
        made = decorate(function)
        _entries.append(made)
        return made

    return wrap


def _cached(decorator: Callable[[bool], Callable[..., Any]]) -> Callable[[Callable[..., Any]], Any]:
    """Compile with numba's cache on disk, wherever it finds a writable place for it.

    numba looks at NUMBA_CACHE_DIR, then beside the file, then in the user's cache folder. Where all are
    read-only, or the disk is full, it raises instead of compiling, so such a machine compiles once a process.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f".{_SOURCE_HASH}"  # numba names the files of its cache by it
        try:
            return decorator(True)(function)
        except OSError:
            return decorator(False)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return decorator(False)(function)

    return wrap
