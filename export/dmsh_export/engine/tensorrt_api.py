"""The TensorRT package (its two flavours share one API) and the GPU of this machine."""

import ctypes
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from dmsh_serving.errors import MissingError

__all__ = [
    "Flavour",
    "FlavourChoice",
    "Gpu",
    "Runtime",
    "choose_flavour",
    "find_gpu",
    "import_flavour",
    "problem_logger",
]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Runtime = Literal["auto", "tensorrt", "tensorrt-rtx"]

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MIN_TENSORRT = (10, 12)

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of the driver API


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the NVIDIA driver lists."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class FlavourChoice:
    """The flavour to build with, and the reason as one clause for people."""

    flavour: Flavour
    why: str
    gpu: Gpu | None


def choose_flavour(requested: Runtime) -> FlavourChoice:
    """Return ``requested``; for ``auto`` TensorRT if a GPU and the package are here, otherwise RTX.

    Raises:
        MissingError: the package is missing, or for TensorRT the GPU that it builds on; says how to get it.
    """
    gpu = find_gpu()
    if requested == "tensorrt-rtx":
        _require("tensorrt-rtx")
        return FlavourChoice("tensorrt-rtx", "asked for", gpu)
    if requested == "tensorrt":
        _require("tensorrt")
        if gpu is None:
            raise MissingError(
                "TensorRT builds a plan on the GPU that is to run it, and no NVIDIA GPU is found here: build there, "
                "or ahead of time with --runtime tensorrt-rtx"
            )
        return FlavourChoice("tensorrt", "asked for", gpu)
    if gpu and _installed("tensorrt"):
        return FlavourChoice("tensorrt", f"there is a GPU ({gpu.name}) and the package", gpu)
    why = "no NVIDIA GPU is found, and RTX builds ahead of time" if gpu is None else "tensorrt is not installed"
    if not _installed("tensorrt-rtx"):
        raise MissingError(
            "no TensorRT package is installed: pip install 'dmsh-toolkit[tensorrt-rtx]' (builds with no GPU), or "
            "'dmsh-toolkit[tensorrt]' on the machine with the GPU"
        )
    return FlavourChoice("tensorrt-rtx", why, gpu)


def import_flavour(flavour: Flavour) -> ModuleType:
    """Import the package of ``flavour``.

    Raises:
        MissingError: it is not installed, too old, or cannot load its libraries.
    """
    _require(flavour)
    try:
        module = importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:
        raise MissingError(f"{flavour} is installed but cannot be loaded: {error}") from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if flavour == "tensorrt" and version < MIN_TENSORRT:
        raise MissingError(
            f"tensorrt {module.__version__} is too old, {'.'.join(map(str, MIN_TENSORRT))} or later is needed: "
            "pip install 'dmsh-toolkit[tensorrt]'"
        )
    return module


def problem_logger(trt: ModuleType, problems: list[str]) -> Any:
    """Return a logger that appends TensorRT's errors to ``problems`` and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                problems.append(message)

    return Logger()


def find_gpu() -> Gpu | None:
    """Return the first GPU of the NVIDIA driver; None without a driver or a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    )
    return None if failed else Gpu(name.value.decode(), f"{major.value}.{minor.value}")


def _installed(flavour: Flavour) -> bool:
    return importlib.util.find_spec(MODULES[flavour]) is not None


def _require(flavour: Flavour) -> None:
    if not _installed(flavour):
        raise MissingError(f"{flavour} is not installed: pip install 'dmsh-toolkit[{flavour}]'")
