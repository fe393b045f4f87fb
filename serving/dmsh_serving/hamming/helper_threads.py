"""Threads that wait for compiled work: handed over in about a microsecond while they still look for it.

A scan of a million codes takes a tenth of a millisecond, which is what waking a thread of a Python pool costs.
Helpers here look for work for about a tenth of a millisecond after each job, in compiled code without the GIL, then
sleep in the kernel. The caller takes part in its own job and never waits for a helper that did not begin, so
a helper that wakes late costs nothing.
"""

import os
import threading

import numpy as np
import numpy.typing as npt

from dmsh_serving.hamming.kernels.cache_lines import LINE, aligned_words


class Helper:
    """One thread and the mailbox it takes jobs from."""

    def __init__(self) -> None:
        from dmsh_serving.hamming.kernels import helpers as worker_kernel

        box = aligned_words(LINE)
        box[:] = 0
        bell = _bell()
        box[worker_kernel.SLEEPS_ON], box[worker_kernel.WOKEN_BY] = bell
        box[worker_kernel.ONE] = 1
        self.mailbox: int = box.ctypes.data
        # The thread keeps the memory: it lives as long as the process.
        try:
            threading.Thread(target=worker_kernel.serve, args=(box,), name="dmsh-helper", daemon=True).start()
        except RuntimeError:
            for descriptor in set(bell):
                os.close(descriptor)
            raise


def _bell() -> tuple[int, int]:
    """Return descriptors such that reading 8 bytes of the first sleeps until 8 bytes are written to the second."""
    if hasattr(os, "eventfd"):
        # Unlike a pipe's, its sleeper is not drawn to the very CPU that wakes it.
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


class helpers:  # noqa: N801 - a class, not a generator, for a microsecond of a search that has a few
    """Lend threads for a while: the addresses (count,) int64 of their mailboxes, for ``share``.

    They are fewer where the process may not have so many; whoever they are lent to then does their part.
    """

    def __init__(self, count: int) -> None:
        self._lent = _take(count) if count else _NONE

    def __enter__(self) -> npt.NDArray[np.int64]:
        return np.array([helper.mailbox for helper in self._lent], np.int64) if self._lent else _NO_MAILBOXES

    def __exit__(self, *error: object) -> None:
        _idle.extend(self._lent)


def run(function: int, job: npt.NDArray[np.int64], participants: int) -> None:
    """Call ``function(job, participant)`` on this thread, as participant 0, and on up to ``participants - 1`` helpers.

    The function shares its work out itself, by an atomic counter, until none is left: some or all of the
    helpers may never begin. It returns when all that began have ended.

    Args:
        function: address of a compiled ``void(int64 job, int64 participant)``.
        job: what it is told, by address.
        participants: at least 1.
    """
    from dmsh_serving.hamming.kernels.helpers import call_share, share

    with helpers(participants - 1) as mailboxes:
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
