"""Strangers' files are decoded in processes of their own, so that one can stop nothing but its own request.

A decoder given hostile bytes may compute for hours, take all memory or crash; no list of checks ends that. Here each
file has a processor time in proportion to its pixels, and each process an amount of memory. The process that goes
beyond it, or crashes, is that file's error, and the next file gets a new process. The pixels are those that
:mod:`.decode` gives in this process: the same code decodes.
"""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images.decode import image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.limits import check_file

__all__ = ["MEMORY_BYTES", "Decoders"]

# Processor time. A sound file of 60 MiB is opened in 0.1 s and decoded in 2 to 40 ns per pixel here; a slow machine may
# take four times that.
_SECONDS: Final = 0.5
_SECONDS_PER_PIXEL: Final = 200e-9
_WALL_SECONDS: Final = 30.0  # twice what the largest image may take: of a busy machine, or a process that hangs
_PATIENCE: Final = 1.0  # seconds of a process that closed its socket, to end
MEMORY_BYTES: Final = 1 << 30  # MAX_DECODE_BYTES, the file, and a copy of the largest image's pixels

_START: Final = "import sys; sys.path[:] = sys.argv[2:]; from dmsh_serving.images.isolated import _work; _work()"
_READY: Final = b"\n"
_NO_MEMORY: Final = errno.ENOMEM  # as an exit code
_TOO_LONG: Final = "the image takes too long to decode"
_REASONS: Final = {"SIGPROF": _TOO_LONG, f"exit code {_NO_MEMORY}": "the image needs too much memory to decode"}
_LONGEST_LINE: Final = 1 << 16
_Size = tuple[int, int]


class Decoders:
    """At most ``most`` processes that decode, started as they are needed and kept; threads may share them.

    A file may take ``seconds`` of processor time, and 0.2 s more per million pixels once its size is known.
    """

    def __init__(self, most: int, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._places = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False

    def start(self) -> None:
        """Start a process now: the first file need not wait for it, and what keeps it from starting is told here.

        Raises:
            MissingError: it does not start.
        """
        self._keep(_Process())

    def image(
        self, data: bytes, image_size: int, framing: Framing, *, name: str, until: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """Do what :func:`.decode.image_from_bytes` does, which see; the array is read-only.

        ``until`` is when nobody waits for it any more, by ``time.monotonic``.

        Raises:
            InputError: as there, or the file takes too long, too much memory, or crashes its decoder.
        """
        asked = {"image_size": image_size, "framing": str(framing)}
        (width, height), pixels = self._decoded(data, name, asked, until)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def rgb(self, data: bytes, *, name: str = "image") -> Image.Image:
        """Do what :func:`.decode.rgb_from_bytes` does, which see.

        Raises:
            InputError: as of :meth:`image`.
        """
        size, pixels = self._decoded(data, name, {})
        return Image.frombytes("RGB", size, pixels)

    def close(self) -> None:
        """End the processes; one that decodes ends when it is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _decoded(
        self, data: bytes, name: str, asked: Mapping[str, Any], until: float | None = None
    ) -> tuple[_Size, bytes]:
        check_file(data, name)
        with self._places:
            patience = _WALL_SECONDS if until is None else until - time.monotonic()
            if patience <= 0:
                raise InputError(f"{name}: the images before it took too long to decode: send fewer at once")
            process = self._taken() or _Process()
            question = {"name": name, "seconds": self._seconds, "length": len(data), **asked}
            try:
                answer = process.ask(question, data, patience)
            except _DeadError as death:
                raise InputError(f"{name}: {death}") from None
            self._keep(process)
        if isinstance(answer, str):
            raise InputError(answer)
        return answer

    def _taken(self) -> "_Process | None":
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.lives():
                    return process
        return None

    def _keep(self, process: "_Process") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.end()


class _DeadError(Exception):
    """A process ended over a file; the text says how."""


class _Process:
    """One child, the socket to it, which is its standard input, and a piece of memory that files and pixels lie in.

    The child ends when the socket does.
    """

    def __init__(self) -> None:
        python = _python()
        self._memory = io.FileIO(os.memfd_create("dmsh-decode"), "r+")
        self._socket, theirs = socket.socketpair()
        with theirs:
            # Its path is this process's own, not what it would find by itself: this process may be Triton's stub.
            self._child = subprocess.Popen(
                [python, "-I", "-S", "-c", _START, str(self._memory.fileno()), *filter(None, sys.path)],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, pass_fds=[self._memory.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip
        self._channel = self._socket.makefile("rwb")
        self._socket.settimeout(_WALL_SECONDS)
        try:
            ready = self._channel.read(1)
        except OSError:
            ready = b""
        if ready != _READY:
            raise MissingError(
                f"the process that decodes images does not start: {python} ended by {self.end(_PATIENCE)}"
            )

    def lives(self) -> bool:
        if self._child.poll() is None:
            return True
        self.end()
        return False

    def ask(self, question: Mapping[str, Any], data: bytes, patience: float) -> tuple[_Size, bytes] | str:
        """Return size and pixels, or why there are none; raise :class:`_DeadError` if it answers no more."""
        self._socket.settimeout(patience)
        try:
            _put(self._memory, data)
            self._channel.write(json.dumps(question).encode() + b"\n")
            self._channel.flush()
            line = self._channel.readline(_LONGEST_LINE)
            if line:
                said: dict[str, Any] = json.loads(line)
                if "refused" in said:
                    return str(said["refused"])
                width, height = said["size"]
                pixels = _taken_out(self._memory, 3 * width * height)
                if len(pixels) == 3 * width * height:
                    return (width, height), pixels
        except TimeoutError:
            self.end()
            raise _DeadError(_TOO_LONG) from None
        except Exception:  # it died, before it had read the file or in the middle of its answer, or it talks nonsense
            pass
        how = self.end(_PATIENCE)
        raise _DeadError(_REASONS.get(how, f"the image is damaged: its decoder ended by {how}"))

    def end(self, patience: float = 0.0) -> str:
        """End the process, if it does not end by itself in ``patience`` seconds; return what ended it."""
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
        code = self._child.wait()
        with contextlib.suppress(OSError):  # something was still to be written
            self._channel.close()
        self._socket.close()
        self._memory.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _python() -> str:
    """Return the interpreter of this process's version: in Triton's stub ``sys.executable`` may be none, or another."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (sys.prefix, sys.base_prefix):
        if (path := Path(folder, "bin", name)).exists():
            return str(path)
    if Path(sys.executable).name.startswith("python"):
        return sys.executable
    raise MissingError(f"no {name} in {sys.base_prefix}/bin: images of strangers are decoded in processes of their own")


def _put(memory: io.FileIO, data: bytes) -> None:
    memory.seek(0)
    memory.write(data)


def _taken_out(memory: io.FileIO, length: int) -> bytes:
    """Return what the other process put there, and give the memory back."""
    memory.seek(0)
    data = memory.read(length)
    memory.truncate(0)
    return data


def _work() -> None:
    """Decode what the parent puts into the shared memory, when it asks through standard input, a socket."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end of a file's time; a parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Image.init()
    _use_one_thread()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process ends, not the server
    memory = io.FileIO(int(sys.argv[1]), "r+")
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as ours, ours.makefile("rwb") as channel:
        channel.write(_READY)
        channel.flush()
        while line := channel.readline():
            try:
                answer = _answer(memory, **json.loads(line))
            except MemoryError:
                os._exit(_NO_MEMORY)
            channel.write(json.dumps(answer).encode() + b"\n")
            channel.flush()


def _use_one_thread() -> None:
    """Keep decoders from starting a thread per processor: each takes memory, and the pixels are the same."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard) if hard == resource.RLIM_INFINITY else (min(most, hard), hard))


def _answer(
    memory: io.FileIO, name: str, length: int, seconds: float, image_size: int | None = None, framing: str = ""
) -> dict[str, Any]:
    """Put the pixels into ``memory`` and return their size, or say why there are none."""
    data = _taken_out(memory, length)

    def allow(pixels: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds + pixels * _SECONDS_PER_PIXEL)

    allow(0)
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
    _put(memory, pixels)
    return {"size": size}
