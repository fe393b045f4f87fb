"""How many threads a Hamming search uses; :mod:`.thread_pool` starts and lends them.

The served ranker asks for the number in its configuration, which :mod:`dmsh_serving.triton.model_configs` writes.
"""

import numpy as np

from dmsh_serving.cpu import available_cpus
from dmsh_serving.errors import InputError

__all__ = ["checked_threads", "one_per_query", "worthwhile_threads"]

_WORTH_A_THREAD = 1 << 20  # bytes of codes to compare; for fewer, another thread costs more than it saves


def checked_threads(threads: int | None) -> int:
    """Return ``threads``, or the number of CPUs for None; raise :class:`InputError` if it is below 1."""
    if threads is None:
        return available_cpus()
    if not isinstance(threads, int | np.integer) or threads < 1:
        raise InputError(f"threads = {threads}: give at least 1, or None to use every CPU")
    return int(threads)


def worthwhile_threads(threads: int, compared_bytes: int) -> int:
    """Return how many of ``threads`` are worth their cost; ``compared_bytes`` are summed over all queries."""
    return max(1, min(threads, compared_bytes // _WORTH_A_THREAD))


def one_per_query(threads: int, queries: int) -> int:
    """Return how many of ``threads`` search the clustered layout, in which a query is the work of one thread."""
    return max(1, min(threads, queries))
