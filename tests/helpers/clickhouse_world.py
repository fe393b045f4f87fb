"""ClickHouse for tests: the embedded one in this process, and a real HTTP server of it in another."""

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.clickhouse.address import Address

F = "f" * 64
_numbers = itertools.count()


@functools.cache
def folder():
    """The one folder of embedded ClickHouse: a process can open no second one."""
    made = Path(tempfile.mkdtemp(prefix="dmsh-chdb-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def address(gallery="photos"):
    """An address in a database that no other test uses."""
    return Address(f"test{next(_numbers)}", gallery, folder=folder())


@dataclass
class Server:
    """An embedded ClickHouse behind HTTP, in a process of its own, which can be stopped and started."""

    folder: Path
    port: int
    options: tuple[str, ...] = ()
    process: subprocess.Popen | None = None

    def start(self):
        script = Path(__file__).with_name("clickhouse_http.py")
        command = [sys.executable, str(script), str(self.folder), str(self.port), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def pause(self, paused):
        os.kill(self.process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def asked(self):
        """How many statements it was sent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/asked") as answer:
            return int(answer.read())

    def address(self, gallery="photos", **changes):
        settings = {"host": "127.0.0.1", "port": self.port, "timeout": 5, **changes}
        return Address(f"test{next(_numbers)}", gallery, **settings)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)
