"""A gallery whose writer is killed, hundreds of times; DMSH_KILL_SECONDS gives it longer than make test does."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("DMSH_KILL_SECONDS", "20"))


def test_fault_18_a_writer_killed_at_random_moments_loses_nothing_that_it_acknowledged(tmp_path, record_property):
    program = ROOT / "tests" / "helpers" / "killed_writer.py"
    seed = int.from_bytes(os.urandom(4))
    line = [sys.executable, program, tmp_path / "gallery", str(SECONDS), str(int(15 * SECONDS)), str(seed)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS + 120)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    found = json.loads(done.stdout)
    print(f"a writer was killed {found['kills']} times: {found}")
    record_property("killed writers", found)
    assert found["kills"] >= 20
    assert found["acknowledged"] > found["kills"] / 10
