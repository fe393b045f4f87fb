"""Disks, memory and clocks that give less than expected; the numbers are those of the project's table of faults."""

import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from dmsh_serving import gallery
from dmsh_serving.codes import uniform_codes
from dmsh_serving.ranker.follower import Ranker

SPACE = {"bits": 64, "fingerprint": "f" * 64}
COMMAND = [sys.executable, "-m", "dmsh_serving", "gallery"]


def in_a_small_disk(folder, script):
    """Run a script where ``folder`` is a tmpfs of 1 MiB; skip where nobody may mount one."""
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = f"mount -t tmpfs -o size=1m none {folder}"
    if not shutil.which("unshare") or subprocess.run([*namespace, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here: user namespaces are off")
    done = subprocess.run([*namespace, "sh", "-c", f"{mount} && {script}"], capture_output=True, text=True)
    return done.stdout, done.stderr


def test_fault_47_a_disk_that_is_really_full_or_read_only_costs_one_line_and_nothing_else(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for name, count in (("few", 20_000), ("many", 300_000)):
        np.save(tmp_path / f"{name}.npy", uniform_codes(count, 64, seed=0))
    command = " ".join(COMMAND)
    build = f"{command} build --out {disk}/g --codes {tmp_path}/few.npy --bits 64 --fingerprint {'f' * 64}"
    append = f"{command} append {disk}/g --codes {tmp_path}/many.npy"
    script = (
        f"{build} >/dev/null && cat {disk}/g/CURRENT; {append}; echo exit $?; ls -A {disk}/g; "
        f"{command} verify {disk}/g >/dev/null && echo sound; mount -o remount,ro {disk}; {append}; echo exit $?"
    )
    out, errors = in_a_small_disk(disk, script)
    version, full, *rest = out.split("\n")
    assert full == "exit 2", errors
    assert rest == [".lock", "CURRENT", f"gallery-{version}.safetensors", "sound", "exit 2", ""]
    first, second = errors.strip().split("\n")
    assert first.startswith(f"error: {disk}/g/gallery-00000002-")
    assert first.endswith(": No space left on device")
    assert second == f"error: {disk}/g/.lock: Read-only file system"


def test_fault_47_too_little_memory_is_one_line(tmp_path):
    gallery.build(tmp_path / "g", uniform_codes(1000, 64, seed=0), None, None, **SPACE)
    np.save(tmp_path / "codes.npy", np.zeros((40_000_000, 8), np.uint8))
    done = subprocess.run(
        [*COMMAND, "append", str(tmp_path / "g"), "--codes", str(tmp_path / "codes.npy")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: not enough memory")
    assert len(done.stderr.splitlines()) == 1
    assert gallery.open_current(tmp_path / "g").count == 1000


def test_fault_47_a_clock_that_jumps_back_a_year_hides_no_version(tmp_path):
    folder = tmp_path / "g"
    gallery.build(folder, uniform_codes(10, 64, seed=0), None, None, **SPACE)
    with Ranker(folder, **SPACE, poll_seconds=0.01) as ranker:
        version = gallery.append(folder, uniform_codes(2, 64, seed=1), None, None).version
        for path in folder.iterdir():
            os.utime(path, (0, time.time() - 365 * 86400))
        deadline = time.monotonic() + 20
        while ranker.version != version:
            assert time.monotonic() < deadline
            time.sleep(0.01)
