"""What a plan's manifest says of it: read by whoever runs, serves or checks an engine without loading it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dmsh_export.manifest import manifest_path, read_manifest
from dmsh_export.tensorrt_api import Flavour, Gpu
from dmsh_serving.codes import checked_bits
from dmsh_serving.errors import InputError, MissingError


@dataclass(frozen=True)
class PlanManifest:
    """One plan.

    Attributes:
        path: the plan.
        fingerprint, bits, image_size: its code space and the side of its images in pixels.
        parent_fingerprint: of the encoder that a low-precision one was made from.
        flavour, version: which TensorRT built it.
        gpu: the GPU it was built on; None for an engine built ahead of time.
        targets: the GPUs it runs on, in words.
        min_batch, opt_batch, max_batch: its optimisation profile.
        version_compatible: later TensorRT versions run it too.
        hardware_compatibility: none, ampere-plus or same-compute-capability.
        command: the command line that made it.
    """

    path: Path
    fingerprint: str
    parent_fingerprint: str | None
    bits: int
    image_size: int
    flavour: Flavour
    version: str
    gpu: Gpu | None
    targets: str
    min_batch: int
    opt_batch: int
    max_batch: int
    version_compatible: bool
    hardware_compatibility: str
    command: str

    @property
    def how_to_rebuild(self) -> str:
        """The command, and where to run it."""
        return f"on this machine, build it again: {self.command}"

    def check_runs_on(self, gpu: Gpu | None, version: str) -> None:
        """Refuse a machine whose first GPU is ``gpu`` and whose TensorRT of this flavour has ``version``.

        Raises:
            MissingError: no GPU, or another GPU or TensorRT version than it was built for; names both.
        """
        if gpu is None:
            raise MissingError(f"{self.path} runs on an NVIDIA GPU ({self.targets}), and none is found here")
        if not self._is_for_version(version):
            later = " or later" if self.version_compatible else ""
            raise MissingError(
                f"{self.path} was built with {self.flavour} {self.version} and runs on that{later}, here is "
                f"{self.flavour} {version}: {self.how_to_rebuild}"
            )
        if not self._is_for_gpu(gpu):
            raise MissingError(
                f"{self.path} was built for {self.targets}, here is {gpu.name} (compute capability "
                f"{gpu.compute_capability}): {self.how_to_rebuild}"
            )

    def _is_for_version(self, version: str) -> bool:
        if self.version_compatible:
            return _numbers(version) >= _numbers(self.version)
        return version == self.version

    def _is_for_gpu(self, gpu: Gpu) -> bool:
        if self.gpu is None:  # an engine built ahead of time: TensorRT-RTX itself says so when it loads it
            return True
        if self.hardware_compatibility == "ampere-plus":
            return _numbers(gpu.compute_capability) >= (8, 0)
        return gpu.compute_capability == self.gpu.compute_capability


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
    return PlanManifest(
        path=path,
        fingerprint=str(manifest["fingerprint"]),
        parent_fingerprint=manifest["parent_fingerprint"],
        bits=checked_bits(int(manifest["bits"])),
        image_size=int(manifest["image_size"]),
        flavour=built["flavour"],
        version=str(built["version"]),
        gpu=Gpu(**built["gpu"]) if built["gpu"] else None,
        targets=str(built["targets"]),
        min_batch=int(profile["min"]),
        opt_batch=int(profile["opt"]),
        max_batch=int(profile["max"]),
        version_compatible=bool(options["version_compatible"]),
        hardware_compatibility=str(options["hardware_compatibility"]),
        command=shlex.join(str(word) for word in manifest["command"]),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
