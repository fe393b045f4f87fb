"""The compiled half of :mod:`dmsh_serving.hamming.helper_threads`.

Imports numba, so it is itself imported on first use.

A mailbox is eight words. Its state goes from FREE to POSTED (by the caller), to RUNNING and back to FREE (by the
helper), or from POSTED back to FREE where the caller was done before the helper began.
"""

from typing import Any, Final

import numba
import numpy as np

from dmsh_serving.hamming.kernels.compile import compiled, entry
from dmsh_serving.hamming.kernels.intrinsics import (
    atomic_exchange,
    atomic_load,
    atomic_replace,
    call_entry,
    call_kernel,
    carray,
    load_i64,
    pointer_i64,
    read_file,
    store_i64,
    write_file,
    yield_cpu,
)

STATE, FUNCTION, JOB, PARTICIPANT, ASLEEP, SLEEPS_ON, WOKEN_BY, ONE = range(8)
FREE, POSTED, RUNNING = range(3)

_LOOKS: Final = 200_000  # about a tenth of a millisecond
_LOOKS_BEFORE_YIELDING: Final = 2_000


@compiled("void(int64[::1])")
def serve(memory: Any) -> None:
    """Take jobs from a mailbox (8,) int64, for ever; sleep in the kernel where none came for a while."""
    box = memory.ctypes.data
    while True:
        looks = 0
        while atomic_load(box + 8 * STATE) != POSTED:
            looks += 1
            if looks == _LOOKS:
                atomic_exchange(box + 8 * ASLEEP, 1)
                # A job posted before the line above was seen is found here; a later one wakes us.
                if atomic_load(box + 8 * STATE) != POSTED:
                    read_file(numba.int32(load_i64(box + 8 * SLEEPS_ON)), box + 8 * ONE, 8)
                atomic_exchange(box + 8 * ASLEEP, 0)
                looks = 0
        if atomic_replace(box + 8 * STATE, POSTED, RUNNING):
            call_entry(load_i64(box + 8 * FUNCTION), load_i64(box + 8 * JOB), load_i64(box + 8 * PARTICIPANT))
            atomic_exchange(box + 8 * STATE, FREE)


@entry("uint64(int64, int64, int64, int64)")
def share(function: int, job: int, mailboxes: int, helpers: int) -> int:
    """Post a job to helpers, take part in it, and wait for those that began; see :func:`workers.run`.

    Called by address from other compiled code, as :func:`dmsh_serving.hamming.kernels.intrinsics.call_kernel` does.

    Args:
        function: address of the ``void(int64 job, int64 participant)`` to call.
        job: what it is told.
        mailboxes: address of the addresses of the helpers' mailboxes.
        helpers: number of them.
    """
    boxes = carray(pointer_i64(mailboxes), helpers)
    for i in range(helpers):
        box = boxes[i]
        store_i64(box + 8 * FUNCTION, function)
        store_i64(box + 8 * JOB, job)
        store_i64(box + 8 * PARTICIPANT, i + 1)
        atomic_exchange(box + 8 * STATE, POSTED)
        if atomic_exchange(box + 8 * ASLEEP, 0) == 1:
            write_file(numba.int32(load_i64(box + 8 * WOKEN_BY)), box + 8 * ONE, 8)
    call_entry(function, job, 0)
    for i in range(helpers):
        state = boxes[i] + 8 * STATE
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
