"""Run :mod:`dmsh_export.engine.worker` in a fresh process and follow its progress."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dmsh_export.engine import worker
from dmsh_export.engine.exchange import BuildResult
from dmsh_serving.errors import CheckError, DmshError, InputError, MissingError

__all__ = ["run_worker"]

_KEPT, _KEPT_PREFIXES = ("PATH", "HOME", "TMPDIR", "PYTHONPATH"), ("LD_", "CUDA_", "NVIDIA_")
_ERRORS: dict[str, type[DmshError]] = {kind.__name__: kind for kind in (CheckError, InputError, MissingError)}


def run_worker(folder: Path, on_progress: Callable[[str, int, int], None] | None) -> BuildResult:
    """Carry out the request in ``folder`` in a fresh process; an interruption kills that process.

    ``on_progress(phase, done, total)`` follows TensorRT's builder.

    Raises:
        DmshError: what the worker raised, or a :class:`CheckError` if it ended without an answer.
    """
    command = [sys.executable, "-P", "-m", worker.__name__]
    with (
        tempfile.TemporaryFile() as noise,
        subprocess.Popen(
            command, cwd=folder, env=_worker_environment(), stdout=subprocess.PIPE, stderr=noise, text=True
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                message = json.loads(line)
                if "phase" in message and on_progress:
                    on_progress(*message["phase"])
                elif "error" in message:
                    kind, text = message["error"]
                    raise _ERRORS[kind](text)
                elif "result" in message:
                    return BuildResult.from_fields(message["result"])
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        noise.seek(0)
        last = noise.read().decode(errors="replace").strip().rpartition("\n")[2]
    ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    raise CheckError(f"the TensorRT build {ending}{', its last words: ' + last if last else ''}")


def _worker_environment() -> dict[str, str]:
    """Return the variables that a build needs: another one would move the memory that the plan's bytes depend on."""
    needed = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    return {**needed, "PYTHONHASHSEED": "0"}
