"""The input and the output of lint: one model's configuration, one finding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "Finding", "Model", "Signature", "tensor_text"]

CONFIG = "config.pbtxt"
Signature = dict[str, tuple[str, tuple[int, ...]]]  # name -> (TYPE_..., dims without the batch)


@dataclass(frozen=True)
class Finding:
    """One mistake: the file (relative to the repository), the problem in it, and how to mend it."""

    file: str
    problem: str
    fix: str


@dataclass(frozen=True)
class Model:
    """One folder of the repository and its configuration, as Triton's own protobuf reads it."""

    folder: Path
    config: Any

    @property
    def name(self) -> str:
        """The folder's name, by which Triton knows the model."""
        return self.folder.name

    @property
    def file(self) -> str:
        """Its configuration, as seen from the repository."""
        return f"{self.name}/{CONFIG}"

    @property
    def is_ensemble(self) -> bool:
        """Whether it only connects other models."""
        return bool(self.config.HasField("ensemble_scheduling") or self.config.platform == "ensemble")

    @property
    def backend(self) -> str:
        """The backend that runs it; an older configuration names it as ``platform``."""
        named = {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime", "ensemble": "ensemble"}
        return str(self.config.backend or named.get(self.config.platform, self.config.platform))

    @property
    def versions(self) -> list[Path]:
        """Its versions' folders, oldest first; Triton takes those with a positive number as their name."""
        numbers = [
            path for path in self.folder.iterdir() if path.is_dir() and path.name.isdecimal() and path.name[0] != "0"
        ]
        return sorted(numbers, key=lambda path: int(path.name))

    @property
    def inputs(self) -> Signature:
        """Its inputs."""
        return _signature(self.config.input)

    @property
    def outputs(self) -> Signature:
        """Its outputs."""
        return _signature(self.config.output)

    @property
    def optional_inputs(self) -> set[str]:
        """The inputs that a request may leave out."""
        return {tensor.name for tensor in self.config.input if tensor.optional}

    def parameter(self, name: str) -> str:
        """Return a parameter; empty if there is none."""
        return str(self.config.parameters[name].string_value) if name in self.config.parameters else ""

    def wrong(self, problem: str, fix: str) -> Finding:
        """Return a finding in this model's configuration."""
        return Finding(self.file, problem, fix)


def tensor_text(tensor: tuple[str, tuple[int, ...]]) -> str:
    """Return a tensor's type and dims for people."""
    return f"{tensor[0]} {list(tensor[1])}"


def _signature(fields: Any) -> Signature:
    types = fields[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number if fields else {}
    return {tensor.name: (types[tensor.data_type].name, tuple(tensor.dims)) for tensor in fields}
