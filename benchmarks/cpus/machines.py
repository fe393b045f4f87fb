"""The machines that the integer networks are compared on: this one, and CPUs that QEMU emulates."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import dmsh_serving
from benchmarks.cpus import fetch as cpus_fetch
from benchmarks.cpus import processes as cpus_processes
from dmsh_export.compare.machine import machine_name
from dmsh_serving.cpu import has_vnni
from dmsh_serving.errors import CheckError, MissingError

__all__ = ["CPUS", "GUEST", "Cpu", "CpuName", "Machine", "check_cpu", "guest_result", "ready"]

CpuName = Literal["native", "avx2", "arm64", "arm64-a53"]
GUEST: Final = Path(__file__).with_name("guest.py")
_SERVING: Final = Path(dmsh_serving.__file__).parents[1]
_MOST_SECONDS: Final = 1800  # per run: the slowest takes two minutes on an idle machine


@dataclass(frozen=True)
class Cpu:
    """A CPU to emulate: QEMU's name for it, and the features that NumPy must and must not see there."""

    title: str
    emulator: str
    model: str
    architecture: str
    has: frozenset[str]
    lacks: frozenset[str]
    saturates: bool = False


CPUS: Final[dict[CpuName, Cpu]] = {
    "avx2": Cpu(
        "Intel Haswell, AVX2 without VNNI",
        "qemu-x86_64-static",
        "Haswell",
        "x86_64",
        frozenset({"AVX2", "FMA3"}),
        frozenset({"AVX512F", "AVX512VNNI"}),
        saturates=True,
    ),
    "arm64": Cpu(
        "ARM64, dot product and i8mm",
        "qemu-aarch64-static",
        "max",
        "aarch64",
        frozenset({"ASIMD", "ASIMDDP"}),
        frozenset(),
    ),
    "arm64-a53": Cpu(
        "ARM Cortex-A53, no dot product",
        "qemu-aarch64-static",
        "cortex-a53",
        "aarch64",
        frozenset({"ASIMD"}),
        frozenset({"ASIMDDP"}),
    ),
}


@dataclass(frozen=True)
class Machine:
    """A machine that is ready to run the guest program.

    Attributes:
        name: of the command line.
        title: for people.
        emulator: its name and version; "none" for this machine itself.
        onnxruntime: the version that runs there.
        command: runs the Python there.
        has_toolkit: whether the toolkit's own encoder runs there.
        saturates: whether uint8 x int8 kernels saturate there without ONNX Runtime's precision option.
        has_openvino: whether OpenVINO is installed there.
        environment: variables of the Python there.
    """

    name: CpuName
    title: str
    emulator: str
    onnxruntime: str
    command: tuple[str, ...]
    has_toolkit: bool
    saturates: bool
    has_openvino: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_emulated(self) -> bool:
        """Whether an emulator computes."""
        return self.name != "native"

    def run(self, settings: Path, variables: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        """Run the guest program with ``settings`` and more environment ``variables``; return what it prints.

        Raises:
            CheckError: it fails or does not end.
        """
        return guest_result(self.title, self.command, {**self.environment, **variables}, settings)


def ready(name: CpuName, cache: Path) -> Machine:
    """Return the machine ``name``; an emulator or a Python that the system lacks is fetched into ``cache``.

    Raises:
        MissingError: something cannot be fetched; says what and why.
        CheckError: the machine runs, but is not the CPU it should be.
    """
    if name == "native":
        return _probed(name, machine_name(), "none", (sys.executable,), {}, has_toolkit=True, saturates=not has_vnni())
    cpu = CPUS[name]
    qemu = cpus_fetch.emulator(cpu.emulator, cache)
    command: tuple[str, ...] = (str(qemu), "-cpu", cpu.model)
    environment: dict[str, str] = {}
    is_x86 = cpu.architecture == "x86_64"
    if is_x86:
        command += (sys.executable,)
    else:
        root, interpreter, packages = (path.resolve() for path in cpus_fetch.arm64_python(cache))
        command += ("-L", str(root), str(interpreter))
        # The libraries that this machine's variables name are of another architecture.
        # Of the toolkit only what decodes runs there, which needs no other package than Pillow.
        path = os.pathsep.join((str(packages), str(_SERVING)))
        environment = {"PYTHONPATH": path, "LD_LIBRARY_PATH": "", "LD_PRELOAD": ""}
    return _probed(name, cpu.title, _version(qemu), command, environment, has_toolkit=is_x86, saturates=cpu.saturates)


def _probed(
    name: CpuName,
    title: str,
    emulator: str,
    command: tuple[str, ...],
    environment: dict[str, str],
    *,
    has_toolkit: bool,
    saturates: bool,
) -> Machine:
    """Start the Python there and check that it sees the CPU it should."""
    try:
        found = guest_result(title, command, environment)
    except CheckError as error:
        raise MissingError(f"{error}; {emulator} may not emulate it") from error
    if name != "native":
        check_cpu(CPUS[name], found)
    has_openvino = has_toolkit and find_spec("openvino") is not None
    return Machine(
        name, title, emulator, found["onnxruntime"], command, has_toolkit, saturates, has_openvino, environment
    )


def check_cpu(cpu: Cpu, found: dict[str, Any]) -> None:
    """Raise :class:`CheckError` unless the probe ``found`` is of the CPU that ``cpu`` says."""
    features = frozenset(found["features"])
    absent, extra = cpu.has - features, cpu.lacks & features
    if found["architecture"] != cpu.architecture or absent or extra:
        raise CheckError(
            f"{cpu.title}: {cpu.emulator} -cpu {cpu.model} shows an {found['architecture']}"
            + "".join(f", without {name}" for name in sorted(absent))
            + "".join(f", with {name}" for name in sorted(extra))
            + ": nothing run there would count; QEMU 7.2 or newer is needed"
        )


def guest_result(
    title: str, command: tuple[str, ...], environment: dict[str, str], settings: Path | None = None
) -> dict[str, Any]:
    """Run the guest program by ``command`` and return what it prints.

    Raises:
        CheckError: it fails, prints something else or does not end.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Threads of OpenBLAS, which computes nothing here, would spin through the emulator.
    variables = {**inherited, "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    arguments = [*command, str(GUEST), *([str(settings)] if settings else [])]
    try:
        done = cpus_processes.run(arguments, {**variables, **environment}, _MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{title}: the run did not end in {_MOST_SECONDS} s") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        # QEMU warns of every feature it leaves out; what Python says comes last.
        said = [line for line in done.stderr.splitlines() if line.strip() and "warning: TCG" not in line]
        raise CheckError(f"{title}: Python there ended with {done.returncode}: {said[-1] if said else 'silently'}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _version(qemu: Path) -> str:
    try:
        said = subprocess.run([str(qemu), "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"{qemu} does not run here: {error}") from error
    words = said.split()
    return f"QEMU {words[words.index('version') + 1]}" if "version" in words else qemu.name
