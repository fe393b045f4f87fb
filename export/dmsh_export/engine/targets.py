"""The GPUs that a plan runs on: recorded in its manifest, checked before it is loaded, written to Triton's files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dmsh_export.engine.tensorrt_api import Gpu

__all__ = ["HardwareCompatibility", "PlanTargets", "served_capabilities"]

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]

# What an RTX engine runs on unless built for one capability.
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
_RTX = "compute capability 8.0, 8.6, 8.9, 12.0 and later (not 7.5, not 9.0)"
# GPUs of Ampere and later; those of Jetson and DRIVE have no such compatibility.
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html
_AMPERE_PLUS = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")


@dataclass(frozen=True)
class PlanTargets:
    """``gpu`` built the plan; it is None for an engine built ahead of time, whose GPU TensorRT-RTX checks."""

    gpu: Gpu | None
    hardware_compatibility: HardwareCompatibility = "none"

    @property
    def text(self) -> str:
        """The targets in words."""
        if self.gpu is None:
            return _RTX
        if self.hardware_compatibility == "ampere-plus":
            return "compute capability 8.0 and later"
        return f"compute capability {self.gpu.compute_capability}"

    def includes(self, compute_capability: str) -> bool:
        """Whether a GPU of ``compute_capability`` ("8.6") is a target, as far as the manifest tells."""
        if self.gpu is None:
            return True
        if self.hardware_compatibility == "ampere-plus":
            return tuple(map(int, compute_capability.split("."))) >= (8, 0)
        return compute_capability == self.gpu.compute_capability


def served_capabilities(plans: Sequence[PlanTargets]) -> list[tuple[str, ...]]:
    """Return the compute capabilities that each of ``plans`` serves; a plan built for exactly one takes precedence."""
    exact = {plan.gpu.compute_capability for plan in plans if plan.gpu and plan.hardware_compatibility != "ampere-plus"}
    return [
        tuple(capability for capability in _AMPERE_PLUS if capability not in exact)
        if plan.hardware_compatibility == "ampere-plus"
        else (plan.gpu.compute_capability,)
        if plan.gpu
        else ()
        for plan in plans
    ]
