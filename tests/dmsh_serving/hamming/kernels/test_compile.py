"""What is compiled once and kept on disk is compiled anew when anything that it was made from changes."""

import ast
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching

import dmsh_serving
from dmsh_serving.hamming.kernels.compile import compiled, entry

PACKAGE = Path(dmsh_serving.__file__).parent
KERNELS = PACKAGE / "hamming" / "kernels"
COMPILE = "dmsh_serving.hamming.kernels.compile"
PROBE = """
from dmsh_serving.hamming.kernels.compile import compiled
from dmsh_serving.hamming.kernels.intrinsics import trailing_zeros


@compiled("int64(uint64)")
def zeros(word):
    return trailing_zeros(word)
"""


def modules_imported(path):
    """Every module of the package that a file imports when it is itself imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmsh_serving."):
            yield node.module


COMPILED = sorted(path for path in PACKAGE.rglob("*.py") if COMPILE in modules_imported(path))


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_compiled_modules_take_from_others_only_what_their_hash_covers(path):
    covered = {"dmsh_serving.contract", *(f"dmsh_serving.hamming.kernels.{each.stem}" for each in KERNELS.glob("*.py"))}
    assert set(modules_imported(path)) <= covered


def test_a_full_disk_costs_the_cache_and_not_the_search(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)

    @compiled("int64(int64)")
    def doubled(value):
        return 2 * value

    @entry("int64(int64)")
    def one_more(value):
        return value + 1

    assert doubled(21) == 42
    assert one_more.ctypes(41) == 42


@pytest.mark.slow
def test_a_changed_intrinsic_is_not_answered_by_what_was_compiled_before(tmp_path):
    copy = tmp_path / "dmsh_serving"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "probe.py").write_text(PROBE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def zeros(word):
        program = f"from dmsh_serving.probe import zeros; print(zeros({word}), sum(zeros.stats.cache_hits.values()))"
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [int(each) for each in done.stdout.split()]

    assert zeros(8) == [3, 0]
    assert zeros(8) == [3, 1]  # from the cache
    intrinsics = copy / "hamming" / "kernels" / "intrinsics.py"
    text = intrinsics.read_text()
    intrinsics.write_text(text.replace("builder.cttz(", "builder.ctlz("))
    assert zeros(8) == [60, 0]
