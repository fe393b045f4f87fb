"""Load a model in a process of its own first: a runtime that crashes there becomes an error here."""

import signal
import subprocess
import sys
from pathlib import Path

from dmsh_serving.errors import CheckError

__all__ = ["survive"]

_SECONDS = 600  # a large network takes a few
_TRIED = "tried"
_PROGRAM = f"""
import sys
from pathlib import Path
from dmsh_serving.encoder.openvino import OpenVinoEncoder
from dmsh_serving.errors import DmshError
path, threads, streams = sys.argv[1:]
try:
    OpenVinoEncoder(Path(path), threads=int(threads) or None, streams=int(streams), tried_first=False)
except DmshError:
    pass  # the one who asked meets it again
print("{_TRIED}")
"""
_COMMAND = (sys.executable, "-c", _PROGRAM)


def survive(path: Path, threads: int | None, streams: int) -> None:
    """Load ``path`` in OpenVINO elsewhere and compute its known answer; any other failure will be met here again.

    Raises:
        CheckError: OpenVINO crashed, or did not come to an end.
    """
    try:
        ended = subprocess.run(
            [*_COMMAND, str(path.absolute()), str(threads or 0), str(streams)],
            cwd="/",  # from the current folder, Python would import what lies there
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{path}: OpenVINO did not load it in {_SECONDS} s; serve it with ONNX Runtime") from error
    if _TRIED not in ended.stdout:
        how = signal.Signals(-ended.returncode).name if ended.returncode < 0 else f"exit code {ended.returncode}"
        raise CheckError(
            f"{path}: OpenVINO crashed ({how}) while it loaded the model or computed its known answer; serve the "
            "onnxruntime dialect with ONNX Runtime"
        )
