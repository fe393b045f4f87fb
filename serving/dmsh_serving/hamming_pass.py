"""Every Hamming distance computed and none selected: what benchmarks compare a search with.

Imports numba, so it is itself imported on first use.
"""

from typing import Final

from dmsh_serving.native import call_kernel, compiled

GROUP: Final = 64


@compiled("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def distances_only(
    kernel: int, codes: int, slot: int, block: int, count: int, queries: int, query_count: int, out: int
) -> None:
    """Compute every distance block by block over one buffer, as a search goes through them.

    Args:
        kernel: address of the kernel's ``distances``.
        codes: address of the codes, as wide as a slot.
        slot: bytes a code.
        block: codes a block.
        count: number of codes; those beyond the last whole group are left out.
        queries: address of the queries, as wide as a slot.
        query_count: number of queries.
        out: address of room for a block of uint16.
    """
    for first in range(0, count, block):
        groups = min(block, count - first) // GROUP
        for q in range(query_count):
            call_kernel(kernel, codes + first * slot, groups, queries + q * slot, out)
