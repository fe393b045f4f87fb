"""Emulators and a foreign Python from apt and pip into a cache, without root and without touching the system.

apt runs on the system's own sources, with its state, lists and archives in a temporary folder and another architecture
than the system's; it checks what it downloads against the signed lists. pip checks wheels against its index. A part of
the cache gets its name when it is whole.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import PIL

from dmsh_serving.errors import MissingError
from dmsh_serving.files import replace_folder, sha256_of_file

__all__ = ["ARM64_WHEELS", "EMULATOR_PACKAGE", "arm64_python", "check_host", "emulator"]

# 7.2 of QEMU is the first to emulate AVX2. ONNX Runtime 1.32 crashes under its ARM64, these are known to run.
EMULATOR_PACKAGE: Final = "qemu-user-static"
# Pillow's own, because its arithmetic is what must be the same.
ARM64_WHEELS: Final = ("onnxruntime==1.22.1", "numpy==1.26.4", f"pillow=={PIL.__version__}")
_ARM64_PACKAGES: Final = ("python3", "libstdc++6")  # with all that they depend on
_PLATFORMS: Final = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
_RECORD: Final = "fetched.json"
_SECONDS: Final = 600

# Read after the system's configuration. Hooks are cleared: they would act on the system.
_APT_CONFIGURATION: Final = """
#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Get::AllowUnauthenticated "false";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""


def emulator(name: str, cache: Path) -> Path:
    """Return the path of the emulator ``name``, such as "qemu-aarch64-static": the system's own, or ``cache``'s.

    Raises:
        MissingError: this is no Linux on x86-64, or it cannot be fetched; says why.
    """
    check_host()
    installed = shutil.which(name)
    if installed:
        return Path(installed)
    folder = _part(cache / "qemu", (EMULATOR_PACKAGE,), _fetch_emulators)
    return folder / name


def arm64_python(cache: Path) -> tuple[Path, Path, Path]:
    """Return (root folder, interpreter in it, folder of its packages) of a Python for ARM64 that has ONNX Runtime.

    Raises:
        MissingError: it cannot be fetched; says why.
    """
    folder = _part(cache / "arm64", (*_ARM64_PACKAGES, *ARM64_WHEELS), _fetch_arm64)
    root = folder / "root"
    return root, _interpreter(root), folder / "site-packages"


def check_host() -> None:
    """Raise :class:`MissingError` unless this is Linux on x86-64."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise MissingError(f"CPUs are emulated on Linux x86-64 only, this is {sys.platform} {platform.machine()}")


def _part(folder: Path, wanted: tuple[str, ...], fetch: Callable[[Path, Path], dict[str, str]]) -> Path:
    """Return ``folder``, filled by ``fetch(new folder, temporary folder)`` unless it holds ``wanted``, undamaged."""
    if _is_whole(folder, wanted):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        downloads = fetch(new, Path(temporary))
        record = {"wanted": wanted, "downloads": downloads, "sha256": _digest(new)}
        (new / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        replace_folder(new, folder)
    return folder


def _is_whole(folder: Path, wanted: tuple[str, ...]) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return False
    return bool(record.get("wanted") == list(wanted) and record.get("sha256") == _digest(folder))


def _digest(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of all files in ``folder``, Python's compiled ones left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc" and path.name != _RECORD:
            total.update(f"{path.relative_to(folder)} {sha256_of_file(path)}\n".encode())
    return total.hexdigest()


def _fetch_emulators(new: Path, temporary: Path) -> dict[str, str]:
    packages = _debian_packages(temporary / "apt", "amd64", (EMULATOR_PACKAGE,), dependencies=False)
    unpacked = temporary / "unpacked"
    _unpack(packages, unpacked)
    for path in (unpacked / "usr" / "bin").glob("qemu-*-static"):
        if path.name in ("qemu-x86_64-static", "qemu-aarch64-static"):
            shutil.copy2(path, new / path.name)
    return {path.name: sha256_of_file(path) for path in packages}


def _fetch_arm64(new: Path, temporary: Path) -> dict[str, str]:
    packages = _debian_packages(temporary / "apt", "arm64", _ARM64_PACKAGES, dependencies=True)
    root = new / "root"
    _unpack(packages, root)
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")  # where the loader is looked for; newer releases ship only the other
    wheels = _wheels(temporary / "wheels", _interpreter(root).name.removeprefix("python"))
    for wheel in wheels:
        shutil.unpack_archive(wheel, new / "site-packages", "zip")
    return {path.name: sha256_of_file(path) for path in (*packages, *wheels)}


def _interpreter(root: Path) -> Path:
    found = sorted(path for path in (root / "usr" / "bin").glob("python3.*") if path.name[8:].isdigit())
    if not found:
        raise MissingError(f"{root} holds no Python after unpacking {', '.join(_ARM64_PACKAGES)}")
    return found[-1]


def _debian_packages(folder: Path, architecture: str, names: Sequence[str], *, dependencies: bool) -> list[Path]:
    """Download ``names`` of ``architecture`` into ``folder`` and return the files."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise MissingError(f"{tool} is missing: {', '.join(names)} can be fetched on Debian and its kin only")
    for place in ("lists/partial", "cache/archives/partial"):
        (folder / place).mkdir(parents=True)
    (folder / "status").touch()
    configuration = folder / "apt.conf"
    configuration.write_text(_APT_CONFIGURATION.format(architecture=architecture, folder=folder.resolve()))
    apt = ["apt-get", "-c", str(configuration), "-qq"]
    # A source that cannot be reached does not matter if another has the packages: the download below tells.
    updated = _run([*apt, "update"], folder)
    archives = folder / "cache" / "archives"
    if dependencies:
        fetched = _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *names], folder)
    else:
        fetched = _run([*apt, "download", *names], archives)
    packages = sorted(archives.glob("*.deb"))
    if fetched.returncode or not packages:
        raise MissingError(f"apt has no {', '.join(names)} for {architecture} here: {_reason(fetched, updated)}")
    return packages


def _wheels(folder: Path, python_version: str) -> list[Path]:
    folder.mkdir()
    platforms = [argument for name in _PLATFORMS for argument in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    fetched = _run([*command, "--python-version", python_version, *platforms, *ARM64_WHEELS], folder)
    if fetched.returncode:
        raise MissingError(f"pip has no {' '.join(ARM64_WHEELS)} for ARM64: {_reason(fetched)}")
    return sorted(folder.glob("*.whl"))


def _unpack(packages: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    for package in packages:
        done = _run(["dpkg-deb", "-x", str(package), str(folder)], folder)
        if done.returncode:
            raise MissingError(f"{package.name} cannot be unpacked: {_reason(done)}")


def _run(command: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"{' '.join(command[:1])} did not end in {_SECONDS} s: is there a network?") from error


def _reason(*runs: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line of error of the first of ``runs`` that printed one."""
    lines = [line for run in runs for line in run.stderr.splitlines()[::-1] if line[:1] == "E" or "ERROR" in line]
    return lines[0] if lines else "it says nothing more; is there a network?"
