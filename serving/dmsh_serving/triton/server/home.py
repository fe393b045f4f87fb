"""Where Triton is on this machine, and how to start it from there.

Looked for in this order: the path given, ``DMSH_TRITON_HOME``, ``tritonserver`` on PATH (NVIDIA's container), the
environment that ``make`` builds (``.venv-triton``) in the checkout that this file is in. One in the current folder
would be anybody's, and it is executed. A path may name a server's executable, an installed server's folder
(``bin/tritonserver`` beside ``backends/``), or a Python environment with the package ``nvidia-pytriton``.

That package carries tritonserver 24.10, which is older than most of Triton's security fixes: it is for tests and
demonstrations on loopback. Production is NVIDIA's container, 26.06 or later.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dmsh_serving.errors import MissingError
from dmsh_serving.files import files_below, is_ours

__all__ = ["HOME_VARIABLE", "PythonFacts", "TritonHome", "cache_folder", "find"]

HOME_VARIABLE = "DMSH_TRITON_HOME"
MADE_ENVIRONMENT = ".venv-triton"
_STUBS: Final = "python_backend_stubs"
_HOW_TO_GET_ONE = (
    f"run make {MADE_ENVIRONMENT}/ready to build it, pass --triton PATH, set {HOME_VARIABLE}, "
    "or work in NVIDIA's Triton container"
)


@dataclass(frozen=True)
class PythonFacts:
    """What the Python of Triton's models has; versions are None for packages that are not there."""

    version: str  # "3.11"
    library_folder: Path | None  # holds libpython3.x.so; None for a Python without a shared library
    numpy: str | None
    numba: str | None
    onnxruntime: str | None
    clickhouse: str | None
    dmsh_serving: str | None


@dataclass(frozen=True)
class TritonHome:
    """One Triton server that can be started.

    Attributes:
        executable: tritonserver.
        backends: the folder for ``--backend-directory``.
        python: the interpreter whose packages the Python models see.
        packaged: it comes from the nvidia-pytriton package (24.10), not from an installation.
        libraries: folders for LD_LIBRARY_PATH.
    """

    executable: Path
    backends: Path
    python: Path
    packaged: bool = False
    libraries: tuple[Path, ...] = ()

    @cached_property
    def facts(self) -> PythonFacts:
        """Ask the interpreter, once, what it has."""
        return _facts_of(self.python, self._python_environment())

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the server is started with."""
        environment = self._python_environment()
        # ONNX Runtime's CUDA provider rounds float inputs to 10 bits of mantissa unless told otherwise.
        environment["NVIDIA_TF32_OVERRIDE"] = "0"
        for folder in (*self.libraries, *filter(None, [self.facts.library_folder])):
            _prepend(environment, "LD_LIBRARY_PATH", folder)
        return environment

    def _python_environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        if self.packaged:  # its environment is whole: nothing of the caller's may mix in
            environment.pop("PYTHONPATH", None)
            environment.pop("PYTHONHOME", None)
        _prepend(environment, "PATH", self.python.parent)
        return environment


def find(explicit: Path | None = None) -> TritonHome:
    """Return the Triton to use, prepared so that it can start.

    Raises:
        MissingError: none is found, or the place named holds none.
    """
    if explicit is not None:
        return _home_at(explicit, "--triton")
    if variable := os.environ.get(HOME_VARIABLE):
        return _home_at(Path(variable), HOME_VARIABLE)
    if on_path := shutil.which("tritonserver"):
        return _installed(Path(on_path).resolve())
    if (made := _project_root() / MADE_ENVIRONMENT).is_dir():
        return _packaged(made)
    raise MissingError(f"no Triton found: {_HOW_TO_GET_ONE}")


def cache_folder() -> Path:
    """Return the folder that prepared servers are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dmsh"


def _home_at(path: Path, named_by: str) -> TritonHome:
    path = path.absolute()
    if path.is_file() and path.name == "tritonserver":
        return _installed(path)
    if (path / "bin" / "tritonserver").is_file():
        return _installed(path / "bin" / "tritonserver")
    if (path / "bin" / "python").exists():
        return _packaged(path)
    raise MissingError(
        f"no Triton at {path} (from {named_by}): name tritonserver, a folder with bin/tritonserver, or a Python "
        "environment that has nvidia-pytriton"
    )


def _installed(executable: Path) -> TritonHome:
    backends = executable.parent.parent / "backends"
    if not (backends / "python").is_dir():
        raise MissingError(f"the Triton at {executable} has no Python backend: {backends / 'python'} is not there")
    return TritonHome(executable, backends, Path(shutil.which("python3") or sys.executable))


def _packaged(environment: Path) -> TritonHome:
    python = environment.absolute() / "bin" / "python"
    packages = sorted(environment.glob("lib/python3*/site-packages"))
    if not python.exists() or not packages or not (packages[0] / "pytriton" / "tritonserver").is_dir():
        raise MissingError(f"{environment} has no nvidia-pytriton, so no Triton: {_HOW_TO_GET_ONE}")
    home = _prepared_copy(packages[0])
    libraries = (packages[0].absolute() / "nvidia_pytriton.libs",)
    return TritonHome(home / "bin" / "tritonserver", home / "backends", python, packaged=True, libraries=libraries)


def _prepared_copy(packages: Path) -> Path:
    """Copy the package's server once to a writable place, with the stub of this environment's Python in it.

    The package leaves the stub outside the backend's folder, where the server does not look.
    """
    python_version = packages.parent.name.removeprefix("python")
    versions = [path.name for path in packages.glob("nvidia_pytriton-*.dist-info")]
    if len(versions) != 1:
        raise MissingError(
            f"{packages} holds {len(versions)} versions of nvidia-pytriton: build {MADE_ENVIRONMENT} again"
        )
    server = packages / "pytriton" / "tritonserver"
    stub = server / _STUBS / python_version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingError(f"nvidia-pytriton has no stub for Python {python_version}: use Python 3.8 to 3.13")
    release = versions[0].removesuffix(".dist-info")
    prepared = cache_folder() / f"{release}-python{python_version}"
    if prepared.is_dir():
        for path in (prepared, prepared.parent, prepared.parent.parent):
            if not is_ours(path):
                raise MissingError(
                    f"{path} belongs to another user, or others may write to it, and programs in it would be run: set "
                    "XDG_CACHE_HOME to a folder of your own"
                )
        if _is_whole(prepared, server, stub):
            return prepared
    prepared.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=prepared.parent, prefix=f".{prepared.name}.") as temporary:
        copy = Path(temporary) / "server"
        shutil.copytree(server, copy, ignore=shutil.ignore_patterns(_STUBS))
        shutil.copy2(stub, copy / "backends" / "python" / stub.name)
        for executable in (copy / "bin" / "tritonserver", copy / "backends" / "python" / stub.name):
            executable.chmod(0o755)
        os.sync()  # it is made once, so a power loss must not leave half of it
        if prepared.is_dir() and not _is_whole(prepared, server, stub):
            prepared.rename(Path(temporary) / "damaged")
        try:
            copy.rename(prepared)
        except OSError:
            if not prepared.is_dir():  # else another process prepared the same server meanwhile
                raise
    return prepared


def _is_whole(prepared: Path, server: Path, stub: Path) -> bool:
    """Say whether each file of the copy is there, and as long as the one that it was copied from."""
    names = [name for name in files_below(server) if not name.startswith(f"{_STUBS}/")]
    pairs = [(prepared / name, server / name) for name in names]
    pairs.append((prepared / "backends" / "python" / stub.name, stub))
    try:
        return all(copy.stat().st_size == source.stat().st_size for copy, source in pairs)
    except OSError:
        return False


_FACTS_PROGRAM = """
import importlib.metadata, importlib.util, json, sys, sysconfig
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
runtimes = [version(name) for name in ("onnxruntime-gpu", "onnxruntime")]
serving = importlib.util.find_spec("dmsh_serving")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "library_folder": sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None,
    "library_name": sysconfig.get_config_var("LDLIBRARY"),
    "numpy": version("numpy"), "numba": version("numba"),
    "onnxruntime": next(filter(None, runtimes), None),
    "clickhouse": version("clickhouse-connect"),
    "dmsh_serving": serving.origin if serving else None,
}))
"""


def _facts_of(python: Path, environment: dict[str, str]) -> PythonFacts:
    command = [str(python), "-c", _FACTS_PROGRAM]
    # From /: what the current folder holds is not what the models will see.
    answer = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    if answer.returncode != 0:
        last_line = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingError(f"the Python of Triton's models, {python}, does not run: {last_line}")
    found: dict[str, Any] = json.loads(answer.stdout)
    folder = Path(found["library_folder"]) if found["library_folder"] else None
    if folder is not None and not (folder / found["library_name"]).exists():
        folder = None
    return PythonFacts(
        version=found["version"],
        library_folder=folder,
        numpy=found["numpy"],
        numba=found["numba"],
        onnxruntime=found["onnxruntime"],
        clickhouse=found["clickhouse"],
        dmsh_serving=found["dmsh_serving"],
    )


def _project_root() -> Path:
    """Return the folder of an editable installation (this file is serving/dmsh_serving/triton/server/home.py)."""
    return Path(__file__).resolve().parents[4]


def _prepend(environment: dict[str, str], name: str, folder: Path) -> None:
    environment[name] = os.pathsep.join(filter(None, [str(folder), environment.get(name, "")]))
