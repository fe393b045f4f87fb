"""What this CPU can do, asked of the CPU itself: an emulator shows the host's in /proc/cpuinfo."""


def has_vnni() -> bool:
    """Return whether products of uint8 and int8 are summed in int32 here by one instruction (x86 VNNI)."""
    from llvmlite import binding  # type: ignore[import-untyped]  # late: it takes 0.1 s

    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") or features.get("avxvnni"))
