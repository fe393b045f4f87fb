"""The manifest of a plan, for those who run, serve or check an engine without loading it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dmsh_export.engine.targets import HardwareCompatibility, PlanTargets
from dmsh_export.engine.tensorrt_api import Flavour, Gpu
from dmsh_export.manifest import manifest_path, read_manifest
from dmsh_serving.codes import checked_bits
from dmsh_serving.errors import InputError, MissingError

__all__ = ["PlanManifest", "read_plan_manifest"]


@dataclass(frozen=True)
class PlanManifest:
    """One plan.

    Attributes:
        path: the plan.
        sha256: of the plan.
        fingerprint: its code space.
        parent_fingerprint: of the encoder that a low-precision one was made from; None without one.
        bits: of a code.
        image_size: side of an image in pixels.
        flavour: the package that built it.
        version: of that package.
        targets: the GPUs that it runs on.
        min_batch: least batch size of its profile.
        opt_batch: batch size at which it is fastest.
        max_batch: greatest batch size of its profile.
        version_compatible: whether later TensorRT versions run it too.
        proven: whether it gave the codes of its checkpoint on a GPU.
        command: the command line that made it.
    """

    path: Path
    sha256: str
    fingerprint: str
    parent_fingerprint: str | None
    bits: int
    image_size: int
    flavour: Flavour
    version: str
    targets: PlanTargets
    min_batch: int
    opt_batch: int
    max_batch: int
    version_compatible: bool
    proven: bool
    command: str

    @property
    def how_to_rebuild(self) -> str:
        """The command, and the machine to run it on."""
        return f"on this machine, build it again: {self.command}"

    @property
    def what_is_unproven(self) -> str | None:
        """Say what is to be proven of its codes; None where that was done, or its code space is its own."""
        if self.proven or self.parent_fingerprint is not None:
            return None
        return "it keeps its checkpoint's code space, and no run on a GPU has proven its codes yet"

    def check_runs_on(self, gpu: Gpu | None, version: str) -> None:
        """Refuse a machine whose first GPU is ``gpu`` and whose TensorRT of this flavour has ``version``.

        Raises:
            MissingError: no GPU, or another GPU or TensorRT version than it was built for; names both.
        """
        if gpu is None:
            raise MissingError(f"{self.path} runs on an NVIDIA GPU ({self.targets.text}), and none is found here")
        if not self._is_for_version(version):
            later = " or later" if self.version_compatible else ""
            raise MissingError(
                f"{self.path} was built with {self.flavour} {self.version} and runs on that{later}, here is "
                f"{self.flavour} {version}: {self.how_to_rebuild}"
            )
        if not self.targets.includes(gpu.compute_capability):
            raise MissingError(
                f"{self.path} was built for {self.targets.text}, here is {gpu.name} (compute capability "
                f"{gpu.compute_capability}): {self.how_to_rebuild}"
            )

    def _is_for_version(self, version: str) -> bool:
        if self.version_compatible:
            return _numbers(version) >= _numbers(self.version)
        return version == self.version


def read_plan_manifest(path: Path) -> PlanManifest:
    """Read the manifest of the plan ``path``, checked to be about these very bytes.

    Raises:
        InputError: no plan, no manifest, or one that is not of a plan made by dmsh-export trt.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: name an engine made by dmsh-export trt")
    manifest = read_manifest(path)
    if manifest.get("kind") != "plan":
        raise InputError(
            f"{manifest_path(path)} is of kind {manifest.get('kind')!r}, not of a plan: use dmsh-export trt"
        )
    try:
        return _from_json(path, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{manifest_path(path)} is incomplete ({error}): build the plan again with dmsh-export trt"
        ) from error


def _from_json(path: Path, manifest: dict[str, Any]) -> PlanManifest:
    built, profile, options = manifest["tensorrt"], manifest["profile"], manifest["options"]
    if built["flavour"] not in get_args(Flavour):
        raise ValueError(f"flavour {built['flavour']!r}")
    if options["hardware_compatibility"] not in get_args(HardwareCompatibility):
        raise ValueError(f"hardware_compatibility {options['hardware_compatibility']!r}")
    return PlanManifest(
        path=path,
        sha256=str(manifest["sha256"]),
        fingerprint=str(manifest["fingerprint"]),
        parent_fingerprint=manifest["parent_fingerprint"],
        bits=checked_bits(int(manifest["bits"])),
        image_size=int(manifest["image_size"]),
        flavour=built["flavour"],
        version=str(built["version"]),
        targets=PlanTargets(Gpu(**built["gpu"]) if built["gpu"] else None, options["hardware_compatibility"]),
        min_batch=int(profile["min"]),
        opt_batch=int(profile["opt"]),
        max_batch=int(profile["max"]),
        version_compatible=bool(options["version_compatible"]),
        proven=manifest.get("proven") is True,
        command=shlex.join(str(word) for word in manifest["command"]),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
