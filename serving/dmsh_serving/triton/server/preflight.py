"""What would keep Triton from starting or answering, found before it starts: each one line that says what to do."""

import os
import re
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dmsh_serving.checks import check_plan_code_is_trusted
from dmsh_serving.clickhouse.address import is_address
from dmsh_serving.contract import ENCODER_MODEL, MAX_FILTER_IDS, MODEL_FILE, RANKER_MODEL
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images.decode import MAX_FILE_BYTES
from dmsh_serving.triton.served_config import gallery_folder, largest_batch, ranked_gallery, read_encoder_config
from dmsh_serving.triton.server.home import TritonHome
from dmsh_serving.triton.server.leftovers.shared_memory import SHARED_MEMORY

__all__ = [
    "LOOPBACK",
    "check",
    "check_ports",
    "check_python",
    "check_repository",
    "check_shared_memory",
    "needed_shared_memory",
]

LOOPBACK = "127.0.0.1"
_ROOM_BYTES = 32 * 1024 * 1024  # for the Python models' regions and batches of common size


def check(home: TritonHome, repository: Path, host: str, ports: Mapping[str, int]) -> None:
    """Check all that can be checked before a start, of a repository that :func:`check_repository` let pass.

    ``ports`` are by their option's name.

    Raises:
        InputError: a port is taken, or no port.
        MissingError: something this machine or Triton's Python lacks.
    """
    check_ports(host, ports)
    if host != LOOPBACK:
        check_ports(LOOPBACK, {option: port for option, port in ports.items() if option != "--grpc-port"})
    check_shared_memory(needed_bytes=needed_shared_memory(repository))
    encoder = read_encoder_config(repository)
    if encoder.version_compatible:
        check_plan_code_is_trusted(f"the encoder of {repository}")
    asks_clickhouse = is_address(ranked_gallery(repository) or "")
    check_python(home, runs_onnx=encoder.backend == "python", asks_clickhouse=asks_clickhouse)


def check_repository(repository: Path) -> None:
    """Refuse a path that Triton cannot serve, and a folder without models, the encoder's file or the gallery."""
    if strange := re.search(r"[^\w@%+=:,./-]", str(repository), re.ASCII):
        # The Python backend pastes the path into a line for a shell, and its Python takes ASCII for the names of files.
        raise InputError(
            f"{repository}: Triton cannot start models in a folder with {strange[0]!r} in its path: rename it"
        )
    if not repository.is_dir():
        raise InputError(f"{repository} is not a folder: make a model repository with dmsh-export repository")
    if not any(repository.glob("*/config.pbtxt")):
        raise InputError(f"{repository} holds no model folders: make a model repository with dmsh-export repository")
    version = repository / ENCODER_MODEL / "1"
    if (version / "model.py").exists() and not (version / MODEL_FILE).exists():
        raise InputError(f"{version / MODEL_FILE} is not there: put the exported model in with dmsh-export repository")
    ranker = repository / RANKER_MODEL
    gallery = ranked_gallery(repository)
    if gallery is not None and not is_address(gallery) and not gallery_folder(ranker, gallery).is_dir():
        raise InputError(
            f"{gallery_folder(ranker, gallery)} is not there, the gallery that {repository} names: build it, or, if "
            f"one of the two was moved, write the repository again with dmsh-export repository MODEL --gallery GALLERY "
            f"--out {repository} --overwrite"
        )


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Refuse a port that is out of range, given twice, or taken."""
    for option, port in ports.items():
        if not 1 <= port <= 65535:
            raise InputError(f"{option} {port} is not a port: use 1 to 65535")
        same = [other for other in ports if ports[other] == port]
        if len(same) > 1:
            raise InputError(f"{' and '.join(same)} are both {port}: give each its own")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            try:
                probe.bind((host, port))
            except OSError as error:
                raise InputError(
                    f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or choose another {option}"
                ) from error


def needed_shared_memory(repository: Path) -> int:
    """Return the bytes of shared memory that the limits permit requests to take.

    A model's region holds its batch. The largest are a file of full size, and a full batch of full filters. More such
    files at once come only from clients that mean it; the kernel then ends the model, and it is started again.
    """
    filters = largest_batch(repository, RANKER_MODEL) * MAX_FILTER_IDS * 8  # of int64
    return _ROOM_BYTES + MAX_FILE_BYTES + filters


def check_shared_memory(folder: Path = SHARED_MEMORY, *, needed_bytes: int) -> None:
    """Refuse a machine whose shared memory is too small for the Python models."""
    if not os.access(folder, os.W_OK):
        raise MissingError(f"{folder} cannot be written: Triton's Python models talk through it")
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise MissingError(
            f"{folder} has {free >> 20} MiB free, Triton's Python models need {needed_bytes >> 20} for the largest "
            f"requests: give it more (docker run --shm-size={(needed_bytes >> 20) + 64}m), or write the repository "
            "with a smaller --max-batch"
        )


def check_python(home: TritonHome, *, runs_onnx: bool = True, asks_clickhouse: bool = False) -> None:
    """Refuse a Python that the models cannot run in.

    Args:
        runs_onnx: the encoder is one of them.
        asks_clickhouse: the gallery is in ClickHouse.
    """
    facts = home.facts
    if home.packaged and facts.numpy and int(facts.numpy.split(".")[0]) >= 2:
        raise MissingError(
            f"numpy {facts.numpy} is installed beside {home.python}: with numpy 2 the outputs of this Triton (24.10) "
            "come back empty; install 'numpy<2' there, or run make .venv-triton/ready"
        )
    needed = {
        "numpy": facts.numpy,
        "numba": facts.numba,
        "dmsh_serving": facts.dmsh_serving,
    }
    if runs_onnx:
        needed["onnxruntime"] = facts.onnxruntime
    if asks_clickhouse:
        needed["clickhouse_connect"] = facts.clickhouse
    absent = [name for name, found in needed.items() if found is None]
    if absent:
        raise MissingError(
            f"the Python of Triton's models, {home.python}, cannot import {', '.join(absent)}: install "
            f"dmsh-toolkit[server{',clickhouse' * asks_clickhouse}] there, or run make .venv-triton/ready"
        )
    _check_package(Path(facts.dmsh_serving or "").parent)
    _check_stub_libraries(home)


def _check_package(folder: Path) -> None:
    """Refuse a package folder that every user can write: it is code, which runs as whoever starts the server."""
    if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
        raise InputError(f"{folder} can be written by every user, and its code would run: chmod -R o-w {folder}")


def _check_stub_libraries(home: TritonHome) -> None:
    stub = home.backends / "python" / "triton_python_backend_stub"
    listing = subprocess.run(
        ["ldd", str(stub)], env=home.environment(), capture_output=True, text=True, check=False
    ).stdout
    absent = re.findall(r"(\S+) => not found", listing)
    if absent:
        raise MissingError(
            f"Triton's Python backend cannot load {', '.join(absent)}: use a Python built with a shared library "
            f"(Debian: apt install libpython{home.facts.version})"
        )
