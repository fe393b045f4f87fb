"""However the comparison of CPUs is ended, no emulator is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.cpus import processes as cpus_processes
from project import ROOT

SLEEPER = "#!/bin/sh\nsleep 600 &\necho $$ $! >> {pids}\nwait\n"  # a program and one that it started
PROGRAM = """
import signal, sys
from pathlib import Path
from types import SimpleNamespace as fake

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have made this one ignore
signal.signal(signal.SIGTERM, signal.SIG_DFL)

def settings(*_):
    yield 1
    while {early} and not Path({pids!r}).read_text().count("\\n"):
        pass  # the first has begun, and the others are not even waiting
    yield from (2, 3)
    if {early}:
        signal.raise_signal({number})

sys.modules["benchmarks.cpus.networks"] = fake(networks=lambda *_: [fake(name="demo")])
sys.modules["benchmarks.cpus.compare"] = compare = fake(
    IMAGES={{"demo": 1}}, settings=settings, run=lambda machine, *_: machine.run(Path("task.json"))
)
import benchmarks.cpus
benchmarks.cpus.compare = compare
from benchmarks.cpus import __main__ as cpus
from benchmarks.cpus import machines as cpus_machines

machine = cpus_machines.Machine("avx2", "Haswell", "QEMU", "1", ({script!r},), True, True)
cpus._machines = lambda names, cache: ([machine], [])
cpus.decoded_on = lambda machines: []
cpus.main()
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def sleeper(tmp_path):
    """A program that takes ten minutes, and the file where it notes its processes' ids."""
    script, pids = tmp_path / "qemu", tmp_path / "pids"
    pids.touch()
    script.write_text(SLEEPER.format(pids=pids))
    script.chmod(0o755)
    yield script, pids
    for pid in map(int, pids.read_text().split()):  # none, unless a test failed
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_emulator_at_once(sleeper, tmp_path, number, early):
    script, pids = sleeper
    names = {"benchmarks": str(ROOT / "benchmarks"), "script": str(script), "pids": str(pids)}
    text = PROGRAM.format(**names, number=int(number), early=early)
    options = ["--cpu", "avx2", "--network", "demo", "--cache", str(tmp_path / "cache")]
    started = subprocess.Popen([sys.executable, "-c", text, *options])
    try:
        wait_until(lambda: pids.read_text().count("\n") or started.poll() is not None)
        if not early:
            started.send_signal(number)
        assert started.wait(timeout=120) == 130
    finally:
        started.kill()
        started.wait()
    running = [int(pid) for pid in pids.read_text().split()]
    assert running
    wait_until(lambda: not any(map(is_alive, running)))
    assert not (tmp_path / "cache").exists()


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(sleeper):
    script, pids = sleeper
    with pytest.raises(subprocess.TimeoutExpired):
        cpus_processes.run([str(script)], dict(os.environ), 1)
    running = [int(pid) for pid in pids.read_text().split()]
    assert len(running) == 2
    wait_until(lambda: not any(map(is_alive, running)))


def test_what_a_program_left_running_is_ended_too(tmp_path):
    command = f"sleep 60 & echo $! > {tmp_path / 'pid'}"  # which keeps the pipes open
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        cpus_processes.run(["/bin/sh", "-c", command], dict(os.environ), 1)
    assert time.monotonic() - started < 30
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_nothing_starts_once_all_are_ended(monkeypatch):
    monkeypatch.setattr(cpus_processes, "_is_ending", False)
    cpus_processes.end_all()
    with pytest.raises(InterruptedError, match="being ended"):
        cpus_processes.run([sys.executable, "-c", ""], dict(os.environ), 1)


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with cpus_processes.interrupted_by_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cpus_processes.interrupted_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
