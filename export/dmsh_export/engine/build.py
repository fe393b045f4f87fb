"""ONNX -> TensorRT plan: typed, audited, built in a fresh process, and written only if every check passes."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dmsh_export.engine import worker
from dmsh_export.engine.audit import AuditRow, is_audited, rows_of
from dmsh_export.engine.exchange import BuildRequest, BuildResult
from dmsh_export.engine.precision import Precision, TypedGraph, WeightRounding, typed_graph
from dmsh_export.engine.process import run_worker
from dmsh_export.engine.proof import Proof, proof_of
from dmsh_export.engine.targets import HardwareCompatibility, PlanTargets
from dmsh_export.engine.tensorrt_api import FlavourChoice, Runtime, choose_flavour
from dmsh_export.graph import bytes_of_model, metadata_of, model_from_bytes
from dmsh_export.manifest import add_results, manifest_path, publish, read_manifest, write_manifest
from dmsh_export.seal import sealed
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import DmshError, InputError
from dmsh_serving.files import sha256_of_file

__all__ = ["BatchProfile", "EngineBuild", "EngineOptions", "engine_from_onnx"]

PACKAGES = ("onnx", "numpy")


@dataclass(frozen=True)
class BatchProfile:
    """Batch sizes that an engine takes: ``min`` to ``max`` images, fastest at ``opt``."""

    min: int = 1
    opt: int = 8
    max: int = 32
    LIMIT: ClassVar[int] = 65_536  # images; far beyond what a GPU holds, far below what overflows a size

    def __post_init__(self) -> None:
        """Refuse sizes out of order."""
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                f"batch profile: --min-batch {self.min}, --opt-batch {self.opt} and --max-batch {self.max} must be "
                "1 or more, and in that order"
            )
        if self.max > self.LIMIT:
            raise InputError(f"batch profile: --max-batch {self.max} is over the largest, {self.LIMIT}")


@dataclass(frozen=True)
class EngineOptions:
    """How to build; None leaves a setting at TensorRT's default. ``workspace_mib`` is scratch memory per layer."""

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
    """A plan that was written.

    Attributes:
        path: the plan.
        choice: the flavour of TensorRT that built it.
        version: of TensorRT.
        reproducible: a second build of this input on this machine gives the same bytes; if a GPU timed the kernels,
            only as far as its choices repeat.
        fingerprint: its code space.
        parent_fingerprint: of the encoder it was made from; None if the code space is the same.
        network_audit: types and work in the parsed network.
        engine_audit: types in the engine; empty without a GPU.
        engine_audited: whether the engine's own layers show the types of trunk and head.
        rounding: the effect of rounding on the weights.
        proof: whether it gives the checkpoint's codes.
    """

    path: Path
    choice: FlavourChoice
    version: str
    reproducible: bool
    fingerprint: str
    parent_fingerprint: str | None
    network_audit: tuple[AuditRow, ...]
    engine_audit: tuple[AuditRow, ...]
    engine_audited: bool
    rounding: WeightRounding
    proof: Proof

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
    ``on_progress(phase, done, total)`` follows TensorRT's builder. No file gets its final name until the audit of the
    parsed network has passed. If a GPU can load the plan, the audit of the engine must pass too, and the known answer
    of a plan that keeps its checkpoint's code space.

    Raises:
        InputError: ``source`` is no encoder of dmsh-export or differs from its manifest, TensorRT does not support an
            operator, the graph is not of the requested precision, the flavour lacks an option, or two outputs have
            the same path.
        CheckError: a weight overflows, the audit or the known answer fails, the proof of an integer model fails, or
            TensorRT cannot build the plan.
        MissingError: no TensorRT package, or no GPU for the requested flavour.
    """
    named = {"MODEL": source, "--out": out, "--typed-onnx": typed_out, "--timing-cache": options.timing_cache}
    _check_apart({name: path for name, path in named.items() if path is not None})
    choice = choose_flavour(options.runtime)
    _check_options(options, choice)
    made = [path for path in (out, typed_out, options.timing_cache) if path is not None]
    with publish(*made) as drafts:
        draft_of = dict(zip(made, drafts, strict=True))
        content = bytes_of_model(source)
        model = model_from_bytes(content, source)
        metadata = EncoderMetadata.from_props(metadata_of(model), str(source))
        if options.precision == "fp32":  # integers are proven below, and all else is a code space of its own
            metadata.check_graph(content, str(source))
        certificate = _certified(source, metadata_of(model), options.precision)
        made_from = _checked_source(source, metadata)
        if made_from != hashlib.sha256(content).hexdigest():
            raise InputError(f"{source} was replaced while it was read: run it again")
        typed = typed_graph(model, options.precision)
        plan = draft_of[out]
        folder = plan.with_name(plan.name + ".build")
        folder.mkdir()
        try:
            result = _result_of(typed, choice, options, folder, on_progress)
            (folder / worker.PLAN).rename(plan)
            build = EngineBuild(
                path=out,
                choice=choice,
                version=result.version,
                reproducible=result.reproducible,
                fingerprint=typed.fingerprint,
                parent_fingerprint=typed.parent_fingerprint,
                network_audit=tuple(rows_of(result.network)),
                engine_audit=tuple(rows_of(result.inspected)),
                engine_audited=is_audited(result.inspected),
                rounding=typed.rounding,
                proof=Proof(None, "not run yet"),
            )
            write_manifest(
                plan,
                kind="plan",
                fingerprint=typed.fingerprint,
                made_from={source.name: made_from},
                options=_recorded(options),
                packages=PACKAGES,
                results=_results(build, metadata, options, sha256_of_file(folder / worker.MODEL)) | certificate,
            )
            proof = proof_of(plan, typed.parent_fingerprint, metadata.known_answer, options.profile.min, choice.gpu)
        except DmshError as error:
            raise type(error)(f"{source}: {error}") from error
        add_results(plan, proof.to_dict())
        if typed_out:
            _write_typed(typed, draft_of[typed_out], source, made_from, options)
        if options.timing_cache:
            (folder / worker.TIMING_CACHE).rename(draft_of[options.timing_cache])
    return dataclasses.replace(build, proof=proof)


def _result_of(
    typed: TypedGraph,
    choice: FlavourChoice,
    options: EngineOptions,
    folder: Path,
    on_progress: Callable[[str, int, int], None] | None,
) -> BuildResult:
    (folder / worker.MODEL).write_bytes(typed.model.SerializeToString(deterministic=True))
    (folder / worker.REQUEST).write_text(_request(options, choice, typed).to_json())
    if options.timing_cache and options.timing_cache.is_file():
        (folder / worker.TIMING_CACHE).write_bytes(options.timing_cache.read_bytes())
    return run_worker(folder, on_progress)


def _check_apart(named: dict[str, Path]) -> None:
    """Refuse one path, or its manifest, for two files: the second would replace the first."""
    owners: dict[Path, str] = {}
    for name, path in named.items():
        for file in (path, manifest_path(path)):
            other = owners.setdefault(file.resolve(), name)
            if other != name:
                raise InputError(f"{other} and {name} would both be {file}: name another file for one of them")


def _certified(source: Path, metadata: dict[str, str], precision: Precision) -> dict[str, Any]:
    """Prove an integer model before it is compiled, and return its certificate for the manifest; {} for a float one."""
    dialect = metadata.get(Metadata.DIALECT)
    if dialect is None:
        if Metadata.PRECISION in metadata and Metadata.PARENT_FINGERPRINT not in metadata:
            raise InputError(f"{source} holds an integer network and names no dialect: export it again")
        return {}
    if dialect != "tensorrt" or precision != "int8":
        raise InputError(
            f"{source} is an integer model in the {dialect} dialect, --{precision} was given: TensorRT takes --int8 "
            "and a model exported with --dialect tensorrt"
        )
    from dmsh_export.prove.certificate import certify

    return {"certificate": certify(source).to_dict()}


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


def _checked_source(source: Path, metadata: EncoderMetadata) -> str:
    """Return the SHA-256 of ``source``; if it has a manifest, both must agree."""
    if not manifest_path(source).exists():
        return sha256_of_file(source)
    manifest = read_manifest(source)
    if manifest.get("fingerprint") != metadata.fingerprint:
        raise InputError(
            f"{manifest_path(source)} says fingerprint {manifest.get('fingerprint')}, {source} says "
            f"{metadata.fingerprint}: export the model again"
        )
    return str(manifest["sha256"])


def _request(options: EngineOptions, choice: FlavourChoice, typed: TypedGraph) -> BuildRequest:
    return BuildRequest(
        flavour=choice.flavour,
        precision=options.precision,
        image_size=EncoderMetadata.from_props(metadata_of(typed.model), "the typed graph").image_size,
        profile=(options.profile.min, options.profile.opt, options.profile.max),
        workspace_mib=options.workspace_mib,
        optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        timing_cache=options.timing_cache is not None,
        # An RTX plan is compiled when it is loaded, so its inspector cannot name the kernels yet.
        inspect=choice.flavour == "tensorrt" and choice.gpu is not None,
        parts=typed.parts,
    )


def _recorded(options: EngineOptions) -> dict[str, Any]:
    return {**dataclasses.asdict(options), "timing_cache": options.timing_cache and options.timing_cache.name}


def _results(
    build: EngineBuild, metadata: EncoderMetadata, options: EngineOptions, typed_sha256: str
) -> dict[str, Any]:
    gpu = build.choice.gpu if build.choice.flavour == "tensorrt" else None
    return {
        "parent_fingerprint": build.parent_fingerprint,
        "precision": options.precision,
        "bits": metadata.bits,
        "image_size": metadata.image_size,
        "profile": dataclasses.asdict(options.profile),
        "typed_onnx_sha256": typed_sha256,
        "tensorrt": {
            "flavour": build.choice.flavour,
            "version": build.version,
            "gpu": dataclasses.asdict(gpu) if gpu else None,
            "targets": PlanTargets(gpu, options.hardware_compatibility).text,
            "reproducible": build.reproducible,
            "tf32": False,
            "strongly_typed": True,
        },
        "audit": {
            "network": [dataclasses.asdict(row) for row in build.network_audit],
            "engine": [dataclasses.asdict(row) for row in build.engine_audit],
            "engine_audited": build.engine_audited,
        },
        "weights": dataclasses.asdict(build.rounding),
    }


def _write_typed(typed: TypedGraph, out: Path, source: Path, made_from: str, options: EngineOptions) -> None:
    from dmsh_export.engine.rounding import with_known_answer

    model = with_known_answer(typed.model, source)
    out.write_bytes(sealed(model))
    write_manifest(
        out,
        kind="onnx",
        fingerprint=typed.fingerprint,
        made_from={source.name: made_from},
        options={"precision": options.precision},
        packages=PACKAGES,
        results={"parent_fingerprint": typed.parent_fingerprint, "weights": dataclasses.asdict(typed.rounding)},
    )
