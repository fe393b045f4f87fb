"""Check a model repository: configurations against the encoder's files, the gallery, and each other.

Nothing here repeats what a model must look like: the generator makes the expected configurations for the encoder's own
code space.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsh_export.lint.encoder import EncoderFile, check_plans, check_runtime, encoder_files
from dmsh_export.lint.ensembles import check_ensemble
from dmsh_export.lint.findings import Finding, Model
from dmsh_export.lint.models import check_alone, check_signature, check_tensors, read_models
from dmsh_serving import gallery
from dmsh_serving.clickhouse.address import Address, is_address
from dmsh_serving.clickhouse.catalogue import Published, current
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.contract import DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_FILE_MODEL
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.triton.model_configs import config_texts
from dmsh_serving.triton.repository import MODELS
from dmsh_serving.triton.served_config import gallery_folder
from dmsh_serving.triton.spec import RepositorySpec

__all__ = ["LintReport", "lint_repository"]


@dataclass(frozen=True)
class LintReport:
    """The models that were checked, the mistakes in them, and remarks that are no mistakes."""

    models: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _CodeSpace:
    """The properties that all models must share, and the file that states them."""

    fingerprint: str
    parent_fingerprint: str | None
    bits: int
    image_size: int
    source: str
    framing: str | None = None


def lint_repository(repository: Path) -> LintReport:
    """Check ``repository`` whole; every mistake is one finding.

    Raises:
        InputError: not a folder, or no model in it.
    """
    if not repository.is_dir():
        raise InputError(f"{repository} is not a folder: name a model repository")
    models, findings = read_models(repository)
    if not models and not findings:
        raise InputError(f"{repository} holds no model folders: make a model repository with dmsh-export repository")
    findings += _absent_models(repository)
    for model in models.values():
        findings += check_alone(model)
    files: list[EncoderFile] = []
    encoder = models.get(ENCODER_MODEL)
    if encoder:
        files, problems = encoder_files(encoder)
        findings += problems
        for file in files:
            findings += check_tensors(encoder, file.inputs, file.outputs, file.file)
        findings += check_plans(encoder, files) + check_runtime(encoder, files) + _check_alike(files)
    space = _code_space(files, encoder)
    if space:
        findings += _check_against(models, space, bool(files))
    for model in models.values():
        if model.is_ensemble:
            findings += check_ensemble(model, models)
    if RANKER_MODEL in models:
        findings += _check_gallery(models[RANKER_MODEL], space)
    notes = tuple(f"{file.file}: {file.note}" for file in files if file.note)
    return LintReport(tuple(models), tuple(dict.fromkeys(findings)), notes)


def _absent_models(repository: Path) -> list[Finding]:
    """Name each missing model. The two that take files may be absent together: such a service takes images alone."""
    absent = [name for name in MODELS if not (repository / name).is_dir()]
    if {DECODE_MODEL, SEARCH_FILE_MODEL} <= set(absent):
        absent = [name for name in absent if name not in (DECODE_MODEL, SEARCH_FILE_MODEL)]
    return [
        Finding(name, "the model is missing", "generate the repository again with dmsh-export repository")
        for name in absent
    ]


def _code_space(files: list[EncoderFile], encoder: Model | None) -> _CodeSpace | None:
    """Return the code space that the encoder's file states; if it cannot be read, that of its configuration."""
    if files:
        first = files[0]
        return _CodeSpace(
            first.fingerprint, first.parent_fingerprint, first.bits, first.image_size, first.file, first.framing
        )
    if encoder is None:
        return None
    sizes = [dims[0] for _, dims in encoder.inputs.values() if len(dims) == 3]
    bits = encoder.parameter("bits")
    if not sizes or not bits.isdecimal():
        return None
    parent = encoder.parameter("parent_fingerprint") or None
    return _CodeSpace(encoder.parameter("fingerprint"), parent, int(bits), sizes[0], encoder.file)


def _check_alike(files: list[EncoderFile]) -> list[Finding]:
    """Name each file of another code space than the first one's: a gallery has the codes of one."""
    findings = []
    for file in files[1:]:
        for key in ("fingerprint", "parent_fingerprint", "bits", "image_size", "framing"):
            ours, theirs = getattr(files[0], key), getattr(file, key)
            if ours != theirs:
                what = f"its {key} is {theirs or 'missing'}, {files[0].file} has {ours or 'none'}"
                findings.append(Finding(file.file, what, "keep the files of one encoder alone"))
    return findings


def _check_against(models: dict[str, Model], space: _CodeSpace, from_file: bool) -> list[Finding]:
    findings: list[Finding] = []
    for name, expected in _expected_models(space).items():
        model = models.get(name)
        if model is None:
            continue
        if not (from_file and name == ENCODER_MODEL):  # that one was compared with its file, tensor by tensor
            findings += check_signature(model, expected, space.source)
        ours = _steps(expected)
        findings += [
            model.wrong(
                f"it runs {other}, of which nobody compares what it computes with {space.source}",
                f"let it run {', '.join(sorted(ours))}, or write an ensemble of another name",
            )
            for other in sorted(_steps(model) & models.keys() - ours)
        ]
        wanted = {"bits": str(space.bits), "fingerprint": space.fingerprint}
        if "image_size" in expected.config.parameters:
            wanted["image_size"] = str(space.image_size)
            if space.framing is not None:
                wanted["framing"] = space.framing
        if name == ENCODER_MODEL and space.parent_fingerprint is not None:  # parity proves what is served by it
            wanted["parent_fingerprint"] = space.parent_fingerprint
        for key, value in wanted.items():
            if model.parameter(key) != value:
                findings.append(
                    model.wrong(
                        f"parameter {key} is {model.parameter(key) or 'missing'}, {space.source} has {value}",
                        f"write {value}, or serve the encoder it belongs to",
                    )
                )
    return findings


def _steps(model: Model) -> set[str]:
    return {step.model_name for step in model.config.ensemble_scheduling.step}


def _expected_models(space: _CodeSpace) -> dict[str, Model]:
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    try:
        spec = RepositorySpec(Path("gallery"), space.bits, space.image_size, space.fingerprint)
    except InputError:  # a code space no model can have, found when it was compared with its file
        return {}
    return {
        name: Model(Path(name), text_format.Parse(text, model_config_pb2.ModelConfig()))
        for name, text in config_texts(spec, "gallery").items()
    }


def _check_gallery(ranker: Model, space: _CodeSpace | None) -> list[Finding]:
    said = ranker.parameter("gallery")
    if not said:
        return [ranker.wrong("parameter gallery is missing", "write the gallery's folder, as seen from the ranker's")]
    snapshot: gallery.Snapshot | Published
    try:
        if is_address(said):
            address = Address.parse(said)
            with Connection(address) as connection:
                snapshot = current(connection, Tables(address))
        else:
            snapshot = gallery.open_current(gallery_folder(ranker.folder, said))
    except (InputError, MissingError) as error:
        return [
            ranker.wrong(f"its gallery {said} cannot be served: {error}", "dmsh-serve gallery build, or write another")
        ]
    if space is None:
        return []
    return [
        ranker.wrong(
            f"its gallery {said} has {what} {theirs}, {space.source} has {ours}",
            "build the gallery with this encoder: dmsh-serve gallery build --overwrite",
        )
        for what, theirs, ours in (
            ("bits", snapshot.bits, space.bits), ("fingerprint", snapshot.fingerprint, space.fingerprint),
        )
        if theirs != ours
    ]  # fmt: skip
