"""The program that loads a model in OpenVINO and computes its known answer, in a process that may crash.

python -m dmsh_serving.encoder.trial MODEL THREADS STREAMS        (0 threads: as many as cores)
"""

import sys
from pathlib import Path

from dmsh_serving.encoder.openvino import OpenVinoEncoder
from dmsh_serving.errors import DmshError

__all__: list[str] = []  # a program


def _main() -> None:
    """Load and compute; an error is this process's exit code."""
    path, threads, streams = sys.argv[1:]
    try:
        OpenVinoEncoder(Path(path), threads=int(threads) or None, streams=int(streams), tried_first=False).close()
    except DmshError as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main()
