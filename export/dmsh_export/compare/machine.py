"""The CPU of this machine, and the instructions that it has for integer products."""

import platform
from pathlib import Path
from typing import Literal

__all__ = ["instructions", "machine_name"]

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
_FLOAT_INSTRUCTIONS = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "ARM64"))
_CPUINFO = Path("/proc/cpuinfo")


def machine_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return one line, such as "AMD EPYC, AVX-512 with VNNI"; without ``cpuinfo``, the architecture alone."""
    name = _fields(cpuinfo).get("model name", platform.machine())
    return ", ".join(filter(None, (name, instructions("int8", cpuinfo))))


def instructions(arithmetic: Literal["fp32", "int8"], cpuinfo: Path = _CPUINFO) -> str:
    """Return the best instructions of this CPU for products of floats or of integers, such as "AVX-512 with VNNI"."""
    fields = _fields(cpuinfo)
    flags = fields.get("flags", fields.get("Features", "")).split()
    known = _INTEGER_INSTRUCTIONS if arithmetic == "int8" else _FLOAT_INSTRUCTIONS
    return next((shown for flag, shown in known if flag in flags), "")


def _fields(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
