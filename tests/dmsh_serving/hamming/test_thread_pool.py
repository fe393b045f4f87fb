"""Lending threads to compiled work: as many as there may be."""

import os
import subprocess
import sys
import threading
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


def test_no_more_threads_are_asked_for_once_one_could_not_be_started_and_its_bell_is_closed(monkeypatch):
    asked, closed, close = [], [], os.close

    def refused(thread):
        asked.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread_pool, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))
    with thread_pool.Helpers(3) as mailboxes:
        assert len(mailboxes) == 0
    assert len(asked) == 1
    assert len(closed) == 1


@pytest.mark.parametrize("with_eventfd", [True, False])
def test_what_a_bell_is_told_wakes_who_sleeps_on_it(monkeypatch, with_eventfd):
    if not hasattr(os, "eventfd"):
        pytest.skip("needs eventfd: Linux and Python 3.10")
    if not with_eventfd:
        monkeypatch.delattr(os, "eventfd")
    sleeps_on, woken_by = thread_pool._bell()
    assert (sleeps_on == woken_by) == with_eventfd  # Linux wakes a pipe's reader on the CPU of the writer
    os.write(woken_by, (1).to_bytes(8, sys.byteorder))
    assert int.from_bytes(os.read(sleeps_on, 8), sys.byteorder) == 1
    for descriptor in {sleeps_on, woken_by}:
        os.close(descriptor)


def test_helpers_that_were_lent_are_lent_again():
    with thread_pool.Helpers(2) as first:
        pass
    with thread_pool.Helpers(2) as second:
        assert len(set(second)) == 2
        assert set(first) == set(second)
