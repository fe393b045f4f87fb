"""A CPU is named with the instructions that its integer products use."""

import pytest

from dmsh_export.compare.machine import machine_name


def cpuinfo(tmp_path, text):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("sse2 avx2 avx512f avx512bw avx512_vnni", "AVX-512 with VNNI"),
        ("sse2 avx2 avx512bw", "AVX-512 without VNNI"),
        ("sse2 avx2", "AVX2 without VNNI"),
        ("sse2 avx2 avx_vnni", "AVX2 with VNNI"),
    ],
)
def test_the_best_integer_instructions_of_an_x86_cpu_are_named(tmp_path, flags, named):
    text = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n"
    assert machine_name(cpuinfo(tmp_path, text)) == f"Some CPU, {named}"


def test_an_arm64_cpu_lists_features_and_no_name(tmp_path):
    assert machine_name(cpuinfo(tmp_path, "processor\t: 0\nFeatures\t: fp asimd asimddp\n")).endswith(
        ", ARM64 with dot product"
    )


def test_without_cpuinfo_the_architecture_is_named(tmp_path):
    assert machine_name(tmp_path / "absent")
    assert "," not in machine_name(tmp_path / "absent")
