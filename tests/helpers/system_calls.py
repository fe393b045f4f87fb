"""What a piece of code asks of the system: the calls that change files, recorded by strace, and one of them failed.

The code runs in a fork of this process, which strace is attached to. Everything that the code needs must be imported
before, so that only its own calls are seen.
"""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import traceback
from dataclasses import dataclass

STRACE = shutil.which("strace")
# Those that the package can make: a call of another name would be missed, so the model of the disk refuses it.
TRACED = (
    "open,openat,creat,close,dup,dup2,dup3,write,pwrite64,writev,pwritev,lseek,truncate,ftruncate,fallocate,"
    "copy_file_range,sendfile,fsync,fdatasync,sync,syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,flock"
)
_LINE = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?: (E\w+))?")
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|([^," ]+)')
_ANYONE = ctypes.c_ulong(-1)  # prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY): strace is no ancestor of the fork
_PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Call:
    """One system call: text arguments are bytes, others are as strace prints them."""

    name: str
    arguments: tuple
    result: int
    error: str


def recorded(code, *options):
    """Run ``code()`` in a fork under strace; return (calls, what became of it: None or the exception as text)."""
    with tempfile.NamedTemporaryFile("r", prefix="strace-") as log:
        told, ready = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _child(code, ready[0], told[1])
            finally:
                os._exit(0)
        for end in (told[1], ready[0]):
            os.close(end)
        command = [STRACE, "-p", str(child), "-o", log.name, "-xx", "-s", "9999999", "-e", f"trace={TRACED}"]
        tracer = subprocess.Popen([*command, "-e", "signal=none", *options], stderr=subprocess.PIPE, text=True)
        said = tracer.stderr.readline()
        assert "attached" in said, f"strace cannot look at a process here: {said}"
        os.write(ready[1], b"!")
        with os.fdopen(told[0], "rb") as pipe:
            outcome = pipe.read().decode()
        os.waitpid(child, 0)
        os.close(ready[1])
        tracer.communicate()
        return [call for line in log if (call := _parsed(line))], outcome or None


def failing(code, name, number, error):
    """Run ``code()`` in a fork whose ``number``-th call (from 1) of ``name`` fails; return as :func:`recorded`."""
    return recorded(code, "-e", f"inject={name}:error={error}:when={number}")


def _child(code, ready, told):
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYONE, 0, 0, 0)
    os.read(ready, 1)
    said = b""
    try:
        code()
    except BaseException as error:  # the parent looks at it
        said = _told(error)
    os.writev(told, [said])  # not write, which may be what fails


def _told(error):
    if isinstance(error, OSError):
        return f"OSError: {error.filename}: {error.strerror}".encode()
    return f"{type(error).__name__}: {error}\n{traceback.format_exc()}".encode()


def _parsed(line):
    found = _LINE.match(line)
    if not found:
        return None
    name, text, result, error = found.groups()
    arguments = tuple(
        bytes.fromhex(part.group(1).replace("\\x", "")) if part.group(1) is not None else part.group(2)
        for part in _ARGUMENT.finditer(text)
    )
    return Call(name, arguments, int(result), error or "")
