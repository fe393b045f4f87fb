"""Lending threads to compiled work: as many as there may be."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmsh_serving.hamming import thread_pool

PROGRAM = """
import os, sys, threading
import numpy as np
from dmsh_serving.hamming import thread_pool
from dmsh_serving.hamming import search

codes = np.random.default_rng(0).integers(0, 256, (1_000_000, 8), dtype=np.uint8)
expected = search(codes[:1], codes, 10, threads=1)
started, start = [], threading.Thread.start


def limited(thread):
    if len(started) == 2:
        raise RuntimeError("can't start new thread")
    started.append(thread)
    start(thread)


threading.Thread.start = limited
for _ in range(5):
    found = search(codes[:1], codes, 10, threads=6)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
print(len(started), len(thread_pool._idle), len(os.listdir("/proc/self/fd")))
for _ in range(5):
    search(codes[:1], codes, 10, threads=6)
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count descriptors")
def test_a_search_goes_on_with_the_threads_that_could_be_started():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started, idle, descriptors, later = map(int, done.stdout.split())
    assert (started, idle) == (2, 2)
    assert later == descriptors


def test_helpers_that_were_lent_are_lent_again():
    with thread_pool.Helpers(2) as first:
        pass
    with thread_pool.Helpers(2) as second:
        assert len(set(second)) == 2
        assert set(first) == set(second)
