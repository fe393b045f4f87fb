"""Ends the processes of a server whose launcher was killed.

tritonserver itself ends with its launcher, and then its models' processes do. Those that are being loaded wait for ever
instead, for locks that a gone tritonserver holds, and with them stays the shared memory. So a small process of its own
waits for the launcher to be gone, lets the server end as it should, and kills what is left of its session.

This file is a program too, which imports the standard library alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

__all__ = ["Guard"]


class Guard:
    """Kills the session that ``server`` leads if this process is killed, ``seconds`` later if its leader lives on."""

    def __init__(self, server: int, seconds: float) -> None:
        # This process alone holds the other end of the input, which so ends when this process does.
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(server), str(seconds)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what Ctrl-C or a closed terminal ends is not to end it
        )

    def dismiss(self) -> None:
        """Let the session be."""
        self._process.kill()
        self._process.communicate()


def _stand(server: int, seconds: float) -> None:
    sys.stdin.buffer.read()
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):  # the server is gone; then its session is, too
        while time.monotonic() < end:
            os.kill(server, 0)
            time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)


if __name__ == "__main__":
    _stand(int(sys.argv[1]), float(sys.argv[2]))
