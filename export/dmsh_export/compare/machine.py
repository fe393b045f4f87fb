"""The CPU of this machine, and the instructions that it has for integer products."""

import platform
from pathlib import Path

__all__ = ["machine_name"]

# Best first: the first that a CPU has is what ONNX Runtime's integer kernels use on it.
_INTEGER_INSTRUCTIONS = (
    ("amx_int8", "AMX"),
    ("avx512_vnni", "AVX-512 with VNNI"),
    ("avx_vnni", "AVX2 with VNNI"),
    ("avx512bw", "AVX-512 without VNNI"),
    ("avx2", "AVX2 without VNNI"),
    ("i8mm", "ARM64 with i8mm"),
    ("asimddp", "ARM64 with dot product"),
    ("asimd", "ARM64"),
)


def machine_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return one line, such as "AMD EPYC, AVX-512 with VNNI"; without ``cpuinfo``, the architecture alone."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    instructions = next((shown for flag, shown in _INTEGER_INSTRUCTIONS if flag in flags), "")
    return ", ".join(filter(None, (fields.get("model name", platform.machine()), instructions)))
