"""A named pipe that nobody writes to: whoever reads it waits, and is let go after a while, so that a test fails."""

import contextlib
import os
import threading

WAIT_SECONDS = 30


@contextlib.contextmanager
def pipe_at(path):
    """Make a pipe at ``path``."""
    os.mkfifo(path)
    letting_go = threading.Timer(WAIT_SECONDS, lambda: os.close(os.open(path, os.O_RDWR)))
    letting_go.start()
    try:
        yield path
    finally:
        letting_go.cancel()
