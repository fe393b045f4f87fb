"""ONNX -> TensorRT plan: typed, audited, built in a fresh process, and written only if it is what was asked for."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmsh_export import engine_worker
from dmsh_export.audit import AuditRow, LayerRecord, rows_of
from dmsh_export.graph_parts import metadata_of, model_from_file
from dmsh_export.manifest import manifest_path, read_manifest, write_manifest
from dmsh_export.precision import Precision, TypedGraph, WeightRounding, typed_graph
from dmsh_export.tensorrt_api import FlavourChoice, Runtime, choose_flavour
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, DmshError, InputError, MissingError
from dmsh_serving.files import sha256_of_file, write_atomically

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]

PACKAGES = ("onnx", "numpy")
_KEPT, _KEPT_PREFIXES = ("PATH", "HOME", "TMPDIR", "PYTHONPATH"), ("LD_", "CUDA_", "NVIDIA_")
_ERRORS: dict[str, type[DmshError]] = {kind.__name__: kind for kind in (CheckError, InputError, MissingError)}
# What an RTX engine runs on unless built for one capability.
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
_RTX_TARGETS = "compute capability 8.0, 8.6, 8.9, 12.0 and later (not 7.5, not 9.0)"


@dataclass(frozen=True)
class BatchProfile:
    """Batch sizes an engine takes: ``min`` to ``max`` images, fastest at ``opt``."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        """Refuse sizes out of order."""
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                f"batch profile: --min-batch {self.min}, --opt-batch {self.opt} and --max-batch {self.max} must be "
                "1 or more, and in that order"
            )


@dataclass(frozen=True)
class EngineOptions:
    """How to build; ``None`` leaves a setting at TensorRT's default. ``workspace_mib``: scratch memory of a layer."""

    precision: Precision
    profile: BatchProfile = BatchProfile()
    runtime: Runtime = "auto"
    workspace_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"


@dataclass(frozen=True)
class EngineBuild:
    """A plan that was written, and what it is: its code space, its audit, and what rounding did to the weights.

    ``reproducible``: a second build of this input here gives the same bytes (where a GPU times kernels, only as far
    as its choices repeat).
    """

    path: Path
    choice: FlavourChoice
    version: str
    reproducible: bool
    fingerprint: str
    parent_fingerprint: str | None
    network_audit: tuple[AuditRow, ...]
    engine_audit: tuple[AuditRow, ...]
    rounding: WeightRounding

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def engine_from_onnx(
    source: Path,
    out: Path,
    options: EngineOptions,
    *,
    typed_out: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> EngineBuild:
    """Build the ONNX encoder ``source`` into the plan ``out`` with its manifest.

    ``typed_out`` keeps the typed graph that was compiled, with its own known answer, for parity and for study.
    ``on_progress(phase, done, total)`` follows TensorRT's builder. Nothing is written under a final name until the
    audit of the parsed network, and where a GPU can load the plan that of the engine, has passed.

    Raises:
        InputError: ``source`` is no encoder of dmsh-export or is not what its manifest says, an operator TensorRT
            does not support, a graph that has not the precision asked for, or an option the flavour lacks.
        CheckError: a weight overflows, the audit failed, or TensorRT cannot build it.
        MissingError: no TensorRT package, or no GPU for the flavour asked for.
    """
    for path in (out, typed_out):
        if path and (not path.absolute().parent.is_dir() or path.is_dir()):
            raise InputError(f"{path}: name a file in a folder that exists")
    choice = choose_flavour(options.runtime)
    _check_options(options, choice)
    model = model_from_file(source)
    made_from = _checked_source(source, metadata_of(model))
    typed = typed_graph(model, options.precision)
    with _folder_beside(out) as folder:
        (folder / engine_worker.MODEL).write_bytes(typed.model.SerializeToString(deterministic=True))
        (folder / engine_worker.REQUEST).write_text(json.dumps(_request(options, choice, typed)))
        if options.timing_cache and options.timing_cache.is_file():
            (folder / engine_worker.TIMING_CACHE).write_bytes(options.timing_cache.read_bytes())
        try:
            result = _run_worker(folder, on_progress)
        except DmshError as error:
            raise type(error)(f"{source}: {error}") from error
        candidate = (folder / engine_worker.PLAN).rename(folder / out.name)
        build = EngineBuild(
            path=out,
            choice=choice,
            version=result["version"],
            reproducible=result["reproducible"],
            fingerprint=typed.fingerprint,
            parent_fingerprint=typed.parent_fingerprint,
            network_audit=_rows(result["network"]),
            engine_audit=_rows(result["inspected"]),
            rounding=typed.rounding,
        )
        manifest = write_manifest(
            candidate,
            kind="plan",
            fingerprint=typed.fingerprint,
            made_from={source.name: made_from},
            options=_recorded(options),
            packages=PACKAGES,
            results=_results(build, typed, options, sha256_of_file(folder / engine_worker.MODEL)),
        )
        if typed_out:
            _write_typed(typed, typed_out, source, made_from, options)
        if options.timing_cache:
            write_atomically(options.timing_cache, (folder / engine_worker.TIMING_CACHE).read_bytes())
        candidate.replace(out)
        manifest.replace(out.with_name(manifest.name))
    return build


def _check_options(options: EngineOptions, choice: FlavourChoice) -> None:
    level, workspace = options.optimization_level, options.workspace_mib
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"--optimization-level {level} must be 0 to 5")
    if workspace is not None and workspace < 1:
        raise InputError(f"--workspace-mib {workspace} must be 1 or more")
    if choice.flavour == "tensorrt-rtx":
        given = {
            "--timing-cache": options.timing_cache is not None,
            "--version-compatible": options.version_compatible,
            "--hardware-compatibility": options.hardware_compatibility != "none",
        }
        without_effect = [name for name, is_given in given.items() if is_given]
        if without_effect:
            raise InputError(
                f"{', '.join(without_effect)}: TensorRT-RTX has no such setting, and this build uses it "
                f"({choice.why}); leave it out, or build with --runtime tensorrt"
            )


def _checked_source(source: Path, metadata: dict[str, str]) -> str:
    """Return the SHA-256 of ``source``, checked against the manifest beside it where there is one."""
    if not manifest_path(source).exists():
        return sha256_of_file(source)
    manifest = read_manifest(source)
    inside = metadata.get(Metadata.FINGERPRINT)
    if manifest.get("fingerprint") != inside:
        raise InputError(
            f"{manifest_path(source)} says fingerprint {manifest.get('fingerprint')}, {source} says {inside}: "
            "export the model again"
        )
    return str(manifest["sha256"])


def _request(options: EngineOptions, choice: FlavourChoice, typed: TypedGraph) -> dict[str, Any]:
    return {
        "flavour": choice.flavour,
        "precision": options.precision,
        "image_size": int(metadata_of(typed.model)[Metadata.IMAGE_SIZE]),
        "profile": [options.profile.min, options.profile.opt, options.profile.max],
        "workspace_mib": options.workspace_mib,
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "hardware_compatibility": options.hardware_compatibility,
        "timing_cache": options.timing_cache is not None,
        # An RTX plan is compiled when it is loaded: what the inspector could name is not decided yet.
        "inspect": choice.flavour == "tensorrt" and choice.gpu is not None,
        "parts": {name: sorted(names) for name, names in vars(typed.parts).items()},
    }


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of ``out``, so that what it holds can be renamed to it."""
    try:
        folder = tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".dmsh-trt-")
    except OSError as error:
        raise InputError(f"{out}: cannot write into its folder: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _run_worker(folder: Path, on_progress: Callable[[str, int, int], None] | None) -> dict[str, Any]:
    """Build in a fresh process and return its result; kill it if this one is interrupted."""
    command = [sys.executable, "-P", "-m", engine_worker.__name__]
    with (
        tempfile.TemporaryFile() as noise,
        subprocess.Popen(
            command, cwd=folder, env=_worker_environment(), stdout=subprocess.PIPE, stderr=noise, text=True
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                message = json.loads(line)
                if "phase" in message and on_progress:
                    on_progress(*message["phase"])
                elif "error" in message:
                    kind, text = message["error"]
                    raise _ERRORS[kind](text)
                elif "result" in message:
                    result: dict[str, Any] = message["result"]
                    return result
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        noise.seek(0)
        last = noise.read().decode(errors="replace").strip().rpartition("\n")[2]
    ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    raise CheckError(f"the TensorRT build {ending}{', its last words: ' + last if last else ''}")


def _worker_environment() -> dict[str, str]:
    """Return the variables a build needs: any other one would shift the memory that its bytes depend on."""
    needed = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    return {**needed, "PYTHONHASHSEED": "0"}


def _rows(records: list[dict[str, Any]]) -> tuple[AuditRow, ...]:
    return tuple(rows_of([LayerRecord(**record) for record in records]))


def _recorded(options: EngineOptions) -> dict[str, Any]:
    return {**dataclasses.asdict(options), "timing_cache": options.timing_cache and options.timing_cache.name}


def _results(build: EngineBuild, typed: TypedGraph, options: EngineOptions, typed_sha256: str) -> dict[str, Any]:
    metadata = metadata_of(typed.model)
    gpu = build.choice.gpu
    on_gpu = build.choice.flavour == "tensorrt" and gpu is not None
    return {
        "parent_fingerprint": build.parent_fingerprint,
        "precision": options.precision,
        "bits": int(metadata[Metadata.BITS]),
        "image_size": int(metadata[Metadata.IMAGE_SIZE]),
        "profile": dataclasses.asdict(options.profile),
        "typed_onnx_sha256": typed_sha256,
        "tensorrt": {
            "flavour": build.choice.flavour,
            "version": build.version,
            "gpu": dataclasses.asdict(gpu) if on_gpu and gpu else None,
            "targets": f"compute capability {gpu.compute_capability}" if on_gpu and gpu else _RTX_TARGETS,
            "reproducible": build.reproducible,
            "tf32": False,
            "strongly_typed": True,
        },
        "audit": {
            "network": [dataclasses.asdict(row) for row in build.network_audit],
            "engine": [dataclasses.asdict(row) for row in build.engine_audit],
        },
        "weights": dataclasses.asdict(build.rounding),
    }


def _write_typed(typed: TypedGraph, out: Path, source: Path, made_from: str, options: EngineOptions) -> None:
    from dmsh_export.rounding import with_known_answer

    model = with_known_answer(typed.model, source)
    write_atomically(out, model.SerializeToString(deterministic=True))
    write_manifest(
        out,
        kind="onnx",
        fingerprint=typed.fingerprint,
        made_from={source.name: made_from},
        options={"precision": options.precision},
        packages=PACKAGES,
        results={"parent_fingerprint": typed.parent_fingerprint, "weights": dataclasses.asdict(typed.rounding)},
    )
