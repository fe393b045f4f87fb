"""How many CPUs this process may use, and what they can do.

The CPU itself is asked for its instructions: an emulator shows those of the host in /proc/cpuinfo.
"""

import os

__all__ = ["available_cpus", "has_vnni"]


def has_vnni() -> bool:
    """Return whether products of uint8 and int8 are summed in int32 here by one instruction (x86 VNNI)."""
    from llvmlite import binding  # type: ignore[import-untyped]  # late: it takes 0.1 s

    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") or features.get("avxvnni"))


def available_cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
