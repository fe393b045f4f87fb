"""Files of strangers are decoded in processes of their own: a bad one stops its own request, nothing else.

A decoder that is given hostile bytes may compute for hours, take all memory or crash, and no list of checks prevents
that. Here each file has a limit of processor time, and each process one of memory. If a process exceeds its limit or
crashes, its file is refused, and the next file gets a new process. The pixels equal those of :mod:`.decode` in this
process: the code is the same.
"""

import contextlib
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from dmsh_serving.errors import DmshError, InputError, MissingError, UnavailableError
from dmsh_serving.images.decoding_process import NO_MEMORY, READY, put, read_out
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.limits import check_file

__all__ = ["Decoders"]

_SECONDS: Final = 0.5  # of processor time, until a file's size is known
_WALL_SECONDS: Final = 30.0  # for the largest image, twice over, on a busy machine; then the process hangs
_PATIENCE: Final = 1.0  # seconds for a process that closed its socket to end

_START: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from dmsh_serving.images.decoding_process import _work; _work()"
)
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")  # what is needed, no secrets
_NO_START: Final = "the process that decodes images does not start"
_BUSY: Final = "the server is busy decoding other images: try again"
_TOO_LONG: Final = "the image takes too long to decode"
_TOO_LARGE: Final = "the image needs too much memory to decode"
_REASONS: Final = {"SIGPROF": _TOO_LONG, f"exit code {NO_MEMORY}": _TOO_LARGE}
_LONGEST_LINE: Final = 1 << 16
_Decoded = tuple[tuple[int, int], bytes]  # width and height, and the pixels


class Decoders:
    """At most ``most`` processes that decode, started as they are needed and kept; threads may share them.

    A file may take ``seconds`` of processor time, and 0.2 s more per million pixels once its size is known.
    """

    def __init__(self, most: int, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._closed = False
        self._places: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(most):
            self._places.put(None)

    def start(self) -> None:
        """Start a process now: the first file need not wait for it, and what keeps it from starting is told here.

        Raises:
            MissingError: it does not start.
        """
        with self._process(time.monotonic() + _WALL_SECONDS):
            pass

    def image(
        self, data: bytes, image_size: int, framing: Framing, *, name: str, until: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return what :func:`.decode.image_from_bytes` returns; the array is read-only.

        ``until`` is when nobody waits for it any more, by ``time.monotonic``.

        Raises:
            InputError: as there; or it takes too long, needs too much memory or crashes its decoder.
            UnavailableError: it is not decoded at ``until``; others may have taken the time.
            MissingError: a process is needed, and does not start.
        """
        asked = {"image_size": image_size, "framing": str(framing)}
        (width, height), pixels = self._decoded(data, name, asked, until)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def rgb(self, data: bytes, *, name: str = "image") -> Image.Image:
        """Return what :func:`.decode.rgb_from_bytes` returns.

        Raises:
            InputError, UnavailableError, MissingError: as of :meth:`image`.
        """
        size, pixels = self._decoded(data, name, {})
        return Image.frombytes("RGB", size, pixels)

    def close(self) -> None:
        """End the processes; one that decodes ends when it is done."""
        self._closed = True
        with self._places.mutex:  # so that none is lent meanwhile
            for process in filter(None, self._places.queue):
                process.end()

    def _decoded(self, data: bytes, name: str, asked: Mapping[str, Any], until: float | None = None) -> _Decoded:
        check_file(data, name)
        question = {"name": name, "seconds": self._seconds, "length": len(data), **asked}
        end = time.monotonic() + _WALL_SECONDS if until is None else until
        with self._process(end) as process:
            try:
                return process.ask(question, data, end)
            except TimeoutError:
                raise (InputError(f"{name}: {_TOO_LONG}") if until is None else UnavailableError(_BUSY)) from None

    @contextlib.contextmanager
    def _process(self, until: float) -> "Iterator[_Process]":
        """Lend the process that was used last, or a new one; raise UnavailableError if there is none at ``until``."""
        try:
            process = self._places.get(timeout=_left(until))
        except queue.Empty:
            raise UnavailableError(_BUSY) from None
        try:
            if process is None or not process.lives():
                process = _Process(until)
            yield process
        finally:
            self._places.put(process)
            if self._closed:
                self.close()


class _Process:
    """One child, the socket to it, which is its standard input, and a piece of memory that files and pixels lie in.

    The child ends when the socket does.
    """

    def __init__(self, until: float) -> None:
        """Start it; raise MissingError if that fails, UnavailableError if it has not started at ``until``."""
        python, patience = _python(), _left(until)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._memory = io.FileIO(os.memfd_create("dmsh-decode"), "r+")
            self._socket, theirs = socket.socketpair()
            with theirs:
                # Its path is this process's own, not what it would find by itself: this process may be Triton's stub.
                self._child = subprocess.Popen(
                    [python, "-I", "-S", "-c", _START, str(self._memory.fileno()), *filter(None, sys.path)],
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL, pass_fds=[self._memory.fileno()],
                    env={**environment, "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
                )  # fmt: skip
            self._channel = self._socket.makefile("rwb")
            self._socket.settimeout(patience)
            ready = self._channel.read(1)
        except TimeoutError:
            self.end()
            raise UnavailableError(f"{_NO_START} in time: try again") from None
        except OSError as error:
            raise MissingError(f"{_NO_START}: {error}") from None
        if ready != READY:
            raise MissingError(f"{_NO_START}: {python} ended by {self.end(_PATIENCE)}")

    def lives(self) -> bool:
        if self._child.poll() is None:
            return True
        self.end()
        return False

    def ask(self, question: Mapping[str, Any], data: bytes, until: float) -> _Decoded:
        """Return size and pixels.

        Raises:
            InputError: the file is refused, or it ended this process.
            TimeoutError: there is no answer at ``until``; the process was ended.
            UnavailableError: it is ``until`` already.
        """
        try:
            self._socket.settimeout(_left(until))
            put(self._memory, data)
            self._channel.write(json.dumps(question).encode() + b"\n")
            self._channel.flush()
            said = json.loads(self._channel.readline(_LONGEST_LINE))
            if "refused" in said:
                raise InputError(str(said["refused"]))
            width, height = said["size"]
            return (width, height), read_out(self._memory, 3 * width * height)
        except DmshError:
            raise
        except MemoryError:
            reason = _TOO_LARGE
        except (TimeoutError, KeyboardInterrupt):  # an answer that still comes must not become the next file's
            self.end()
            raise
        except Exception:  # it died, before it had read the file or in the middle of its answer, or it talks nonsense
            how = self.end(_PATIENCE)
            reason = _REASONS.get(how, f"the image is damaged: its decoder ended by {how}")
        raise InputError(f"{question['name']}: {reason}")

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


def _left(until: float) -> float:
    """Return the seconds until ``until``; raise UnavailableError if there are none."""
    if (left := until - time.monotonic()) > 0:
        return left
    raise UnavailableError(_BUSY)
