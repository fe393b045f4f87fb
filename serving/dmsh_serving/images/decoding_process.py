"""What a process of :mod:`.isolated` does: decode files, one after the other, within limits of time and memory."""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image

from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing

__all__ = ["MEMORY_BYTES", "NO_MEMORY", "READY", "put", "read_out"]

MEMORY_BYTES: Final = 1 << 30  # MAX_DECODE_BYTES, the file, and a copy of the largest image's pixels
NO_MEMORY: Final = errno.ENOMEM  # the exit code of a process that needs more
READY: Final = b"\n"
_SECONDS_PER_PIXEL: Final = 200e-9  # of processor time: several times what a sound image takes on a fast machine


def put(memory: io.FileIO, data: bytes) -> None:
    """Put there what the other process is to read out; if the system has no room for it, that process sees it."""
    memory.seek(0)
    with contextlib.suppress(OSError):
        memory.write(data)


def read_out(memory: io.FileIO, length: int) -> bytes:
    """Return what the other process put there, and give the memory back; raise MemoryError if some is missing."""
    memory.seek(0)
    data = memory.read(length)
    memory.truncate(0)
    if len(data) < length:
        raise MemoryError
    return data


def _work() -> None:
    """Decode what the parent puts into the shared memory, when it asks through standard input, a socket."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end of a file's time; a parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    Image.init()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process ends, not the server
    # libtiff writes to descriptor 2, a line per row of a bad image: nothing else may have that number.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    memory = io.FileIO(os.dup(int(sys.argv[1])), "r+")
    os.dup2(nowhere, 2)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as ours, ours.makefile("rwb") as channel:
        channel.write(READY)
        channel.flush()
        while line := channel.readline():
            try:
                answer = _answer(memory, **json.loads(line))
            except MemoryError:
                os._exit(NO_MEMORY)
            channel.write(json.dumps(answer).encode() + b"\n")
            channel.flush()


def _limit(what: int, most: int) -> None:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


def _answer(
    memory: io.FileIO, name: str, length: int, seconds: float, image_size: int | None = None, framing: str = ""
) -> dict[str, Any]:
    """Put the pixels into ``memory`` and return their size, or say why there are none."""
    data = read_out(memory, length)

    def allow(pixels: int) -> None:
        left, _ = signal.getitimer(signal.ITIMER_PROF)
        signal.setitimer(signal.ITIMER_PROF, left + pixels * _SECONDS_PER_PIXEL)

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        if image_size is None:
            picture = rgb_from_bytes(data, name=name, on_size=allow)
            size, pixels = picture.size, picture.tobytes()
        else:
            image = image_from_bytes(data, image_size, Framing.parse(framing), name=name, on_size=allow)
            size, pixels = (image_size, image_size), image.tobytes()
    except InputError as error:
        return {"refused": str(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    put(memory, pixels)
    return {"size": size}
