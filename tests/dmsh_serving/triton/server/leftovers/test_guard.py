"""What a killed launcher leaves is ended, and nothing else is."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dmsh_serving.triton.server.leftovers.guard import Guard

LAUNCHER = """
import subprocess, sys, time
from dmsh_serving.triton.server.leftovers.guard import Guard
# A server, and a model's process that does not end with it.
command = ["sh", "-c", "sleep 600 & echo $!; exec sleep 600"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
Guard(server.pid, float(sys.argv[1]))
print(server.pid, int(server.stdout.readline()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def launch():
    """A function that starts a launcher; it returns the launcher and the ids of its server and of the model."""
    with contextlib.ExitStack() as at_the_end:

        def launched(seconds):
            command = [sys.executable, "-c", LAUNCHER, str(seconds)]
            process = at_the_end.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            at_the_end.callback(process.kill)
            server, model = map(int, process.stdout.readline().split())
            at_the_end.callback(end_session, server)
            return process, server, model

        yield launched


def end_session(server):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)


def lives(process):
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*processes):
    end = time.monotonic() + 20
    while any(map(lives, processes)):
        assert time.monotonic() < end, processes
        time.sleep(0.05)


def test_what_a_server_leaves_is_killed_as_soon_as_it_has_ended(launch):
    process, server, model = launch(600)
    process.kill()
    os.kill(server, signal.SIGTERM)
    wait_until_gone(model)


def test_a_server_has_its_time_to_end(launch):
    process, server, model = launch(2)
    process.kill()
    process.wait()
    time.sleep(0.5)
    assert lives(server)
    assert lives(model)
    wait_until_gone(server, model)


def test_nothing_is_killed_while_the_launcher_lives(launch):
    _, server, model = launch(0)
    time.sleep(1)
    assert lives(server)
    assert lives(model)


def test_one_that_is_dismissed_kills_nothing_and_is_gone():
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as server:
        before = set(psutil.Process().children())
        guard = Guard(server.pid, 0)
        (standing,) = set(psutil.Process().children()) - before
        guard.dismiss()
        assert not standing.is_running()
        assert server.poll() is None
        server.kill()
