"""The compiled half of :mod:`dmsh_serving.hamming.thread_pool`.

Imports numba, so it is itself imported on first use.

The caller sets the state of a mailbox from FREE to POSTED. The helper sets it to RUNNING, then to FREE. If the caller
is done before the helper began, the caller sets it from POSTED back to FREE.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    address_of,
    atomic_exchange,
    atomic_load,
    atomic_replace,
    call_entry,
    call_kernel,
    carray,
    pointer_i64,
    read_file,
    record_at,
    record_type,
    types,
    write_file,
    yield_cpu,
)
from dmsh_serving.hamming.kernels.memory import WORD

__all__ = ["MAILBOX", "call_share", "serve", "share"]

MAILBOX: Final = np.dtype(
    [
        ("state", WORD),  # FREE, POSTED or RUNNING
        ("asleep", WORD),  # 1 from shortly before the helper sleeps until it is woken, else 0
        ("function", np.int64),  # address of the ``void(int64 job, int64 participant)`` to call
        ("job", np.int64),  # address
        ("participant", np.int64),
        ("sleeps_on", np.int64),  # file descriptor that the helper reads
        ("woken_by", np.int64),  # file descriptor that the caller writes
        ("one", WORD),  # 1: what is written and read
    ],
    align=True,
)
FREE, POSTED, RUNNING = range(3)

_LOOKS: Final = 200_000  # about a tenth of a millisecond
_LOOKS_BEFORE_YIELDING: Final = 2_000


_box_at = record_at(MAILBOX)


@compiled(types.void(record_type(MAILBOX)[::1]))
def serve(mailbox: Any) -> None:
    """Take jobs from a mailbox, (1,) MAILBOX, for ever; sleep in the operating system if none came for a while."""
    box = mailbox[0]
    while True:
        looks = 0
        while atomic_load(box.state) != POSTED:
            looks += 1
            if looks == _LOOKS:
                atomic_exchange(box.asleep, 1)
                # A job that was posted before others could see the line above is found here. A later one wakes us.
                if atomic_load(box.state) != POSTED:
                    read_file(numba.int32(box.sleeps_on), address_of(box.one), 8)
                atomic_exchange(box.asleep, 0)
                looks = 0
        if atomic_replace(box.state, POSTED, RUNNING):
            call_entry(box.function, box.job, box.participant)
            atomic_exchange(box.state, FREE)


@entry("uint64(int64, int64, int64, int64)")
def share(function: int, job: int, mailboxes: int, helpers: int) -> int:
    """Post a job to helpers, take part in it, and wait for the helpers that began; see ``thread_pool.run``.

    Called by address from other compiled code, as :func:`dmsh_serving.hamming.kernels.intrinsics.call_kernel` does.

    Args:
        function: address of the ``void(int64 job, int64 participant)`` to call.
        job: address of its record.
        mailboxes: address of the addresses of the helpers' mailboxes.
        helpers: number of them.
    """
    boxes = carray(pointer_i64(mailboxes), helpers)
    for i in range(helpers):
        box = _box_at(boxes[i])
        box.function, box.job, box.participant = function, job, i + 1
        atomic_exchange(box.state, POSTED)
        if atomic_exchange(box.asleep, 0) == 1:
            write_file(numba.int32(box.woken_by), address_of(box.one), 8)
    call_entry(function, job, 0)
    for i in range(helpers):
        state = _box_at(boxes[i]).state
        if not atomic_replace(state, POSTED, FREE):
            looks = 0
            while atomic_load(state) != FREE:
                looks += 1
                if looks > _LOOKS_BEFORE_YIELDING:
                    yield_cpu()
    return 0


@compiled("void(int64, int64, int64, int64[::1])")
def call_share(address: int, function: int, job: int, mailboxes: Any) -> None:
    """Call :func:`share`, at ``address``, from Python."""
    call_kernel(address, function, job, np.int64(mailboxes.ctypes.data), mailboxes.shape[0])
