"""Threads that wait for compiled work. A helper that has not gone to sleep yet begins within about a microsecond.

A scan of a million codes takes a tenth of a millisecond; to wake a thread of a Python pool takes as long. After each
job, a helper looks for the next one for about a tenth of a millisecond, in compiled code without the GIL. Then it
sleeps in the operating system. The caller works on its own job too, and never waits for a helper that did not begin.
So a helper that wakes late costs nothing.
"""

import os
import threading

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.kernels.memory import new_record

__all__ = ["Helpers", "run"]


class Helper:
    """One thread and the mailbox it takes jobs from."""

    def __init__(self) -> None:
        from dmsh_serving.hamming.kernels import helpers as worker_kernel

        bell = _bell()
        box = new_record(worker_kernel.MAILBOX, sleeps_on=bell[0], woken_by=bell[1])
        box["one"]["value"] = 1
        self.mailbox: int = box.ctypes.data
        # The thread keeps the memory: it lives as long as the process.
        try:
            threading.Thread(target=worker_kernel.serve, args=(box,), name="dmsh-helper", daemon=True).start()
        except RuntimeError:
            for descriptor in set(bell):
                os.close(descriptor)
            raise


def _bell() -> tuple[int, int]:
    """Return two file descriptors: a read of 8 bytes from the first sleeps until 8 bytes are written to the second."""
    if hasattr(os, "eventfd"):
        # Linux wakes the reader of a pipe on the CPU of the writer, but not the reader of an eventfd.
        descriptor = os.eventfd(0)
        return descriptor, descriptor
    return os.pipe()


_idle: list[Helper] = []  # append and pop are atomic
_NONE: list[Helper] = []
_NO_MAILBOXES = np.empty(0, np.int64)


def _forget_helpers() -> None:
    _idle.clear()  # a forked child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


class Helpers:  # a generator would add a microsecond to a search of a few codes
    """Lend ``count`` threads for a while: gives the addresses of their mailboxes, (count,) int64, for ``share``.

    If the process cannot start so many threads, they are fewer, and the caller does their part.
    """

    def __init__(self, count: int) -> None:
        self._lent = _take(count) if count else _NONE

    def __enter__(self) -> npt.NDArray[np.int64]:
        return np.array([helper.mailbox for helper in self._lent], np.int64) if self._lent else _NO_MAILBOXES

    def __exit__(self, *error: object) -> None:
        _idle.extend(self._lent)


def run(function: int, job: npt.NDArray[np.void], participants: int) -> None:
    """Call ``function(job, participant)`` on this thread, as participant 0, and on up to ``participants - 1`` helpers.

    The function itself takes work by an atomic counter until none is left, so some or all of the helpers may never
    begin. This returns when the caller and all helpers that began have ended.

    Args:
        function: address of a compiled ``void(int64 job, int64 participant)``.
        job: its record, handed over by address.
        participants: at least 1.
    """
    from dmsh_serving.hamming.kernels.helpers import call_share, share

    with Helpers(participants - 1) as mailboxes:
        call_share(share.address, function, job.ctypes.data, mailboxes)


def _take(count: int) -> list[Helper]:
    taken: list[Helper] = []
    for _ in range(count):
        try:
            taken.append(_idle.pop())
        except IndexError:
            try:
                taken.append(Helper())
            except (RuntimeError, OSError):  # no more threads, or no more descriptors
                break
    return taken
