"""One model's configuration by itself, and against the signature it must have."""

from pathlib import Path
from typing import Any

from dmsh_export.lint.findings import CONFIG, Finding, Model, Signature, tensor_text

__all__ = ["check_alone", "check_signature", "check_tensors", "read_models"]

BACKENDS = ("python", "onnxruntime", "openvino", "tensorrt", "ensemble")


def read_models(repository: Path) -> tuple[dict[str, Model], list[Finding]]:
    """Parse every configuration with Triton's own protobuf."""
    from google.protobuf import text_format  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2

    models: dict[str, Model] = {}
    findings: list[Finding] = []
    for folder in sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")):
        file = folder / CONFIG
        if not file.is_file():
            findings.append(
                Finding(f"{folder.name}/{CONFIG}", "the file is missing", "remove the folder, or generate it again")
            )
            continue
        try:
            config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            findings.append(
                Finding(f"{folder.name}/{CONFIG}", f"it cannot be parsed: {error}", "mend that line (line:column)")
            )
            continue
        models[folder.name] = Model(folder, config)
    return models, findings


def check_alone(model: Model) -> list[Finding]:
    """Check one configuration without any other file: name, backend, versions, batching, answers, warm-up."""
    config, findings = model.config, []
    if config.name not in ("", model.name):
        findings.append(model.wrong(f'name: "{config.name}" is not the folder\'s', f'write name: "{model.name}"'))
    if model.backend not in BACKENDS:
        findings.append(
            model.wrong(
                f"backend or platform {model.backend or 'is missing, it'!r} is not known here",
                f"use one of {', '.join(BACKENDS)}",
            )
        )
    if not model.versions:
        findings.append(
            Finding(
                f"{model.name}/1", "the version's folder is missing", "make the folder, with the model's file in it"
            )
        )
    if config.max_batch_size < 1:
        findings.append(
            model.wrong(
                f"max_batch_size {config.max_batch_size} turns batching off, and the first dimension is the batch",
                "write the most images of one call, 1 or more",
            )
        )
    too_large = [size for size in config.dynamic_batching.preferred_batch_size if size > config.max_batch_size]
    if too_large:
        findings.append(
            model.wrong(
                f"preferred_batch_size {too_large[0]} is over max_batch_size {config.max_batch_size}",
                "leave it out, or raise max_batch_size",
            )
        )
    findings += _check_versions(model) + _check_accelerators(model)
    if config.HasField("sequence_batching"):
        findings.append(
            model.wrong(
                "sequence_batching: requests of a search belong to no sequence, and Triton refuses those without one",
                "write dynamic_batching { }",
            )
        )
    if config.response_cache.enable:
        findings.append(
            model.wrong(
                "response_cache: an answer that is kept may be of a gallery or a model that has changed", "leave it out"
            )
        )
    for warmup in config.model_warmup:
        findings += _check_warmup(model, warmup)
    return findings + _check_python_file(model)


def _check_versions(model: Model) -> list[Finding]:
    """Find versions that the policy asks for and that are not there: Triton does not load the model then."""
    there = {int(version.name) for version in model.versions}
    absent = [number for number in model.config.version_policy.specific.versions if number not in there]
    if not absent:
        return []
    return [
        model.wrong(
            f"version_policy asks for version {absent[0]}, which has no folder",
            f"name some of {', '.join(map(str, sorted(there)))}, or leave version_policy out",
        )
    ]


def _check_accelerators(model: Model) -> list[Finding]:
    """Find accelerators that may choose the types of layers themselves: their codes are others."""
    used = model.config.optimization.execution_accelerators
    precisions = [
        (each.name, each.parameters.get("precision_mode", "FP32"))
        for each in (*used.gpu_execution_accelerator, *used.cpu_execution_accelerator)
    ]
    return [
        model.wrong(
            f"execution_accelerators: {name} in {precision} is not known to give the codes of the file",
            'leave it out, or use tensorrt with precision_mode "FP32"',
        )
        for name, precision in precisions
        if (name, precision) != ("tensorrt", "FP32")
    ]


def _check_python_file(model: Model) -> list[Finding]:
    if model.backend != "python":
        return []
    name = model.config.default_model_filename or "model.py"
    return [
        Finding(f"{model.name}/{version.name}/{name}", "the file is missing", "generate the repository again")
        for version in model.versions
        if not (version / name).is_file()
    ]


def _check_warmup(model: Model, warmup: Any) -> list[Finding]:
    findings = []
    if warmup.batch_size > model.config.max_batch_size:
        findings.append(
            model.wrong(
                f'model_warmup "{warmup.name}": batch_size {warmup.batch_size} is over max_batch_size '
                f"{model.config.max_batch_size}",
                f"write batch_size: {model.config.max_batch_size}",
            )
        )
    for name, given in warmup.inputs.items():
        wanted = model.inputs.get(name)
        if wanted is None:
            findings.append(
                model.wrong(
                    f'model_warmup "{warmup.name}": the model has no input {name}',
                    f"name one of {', '.join(model.inputs)}",
                )
            )
        elif tuple(given.dims) != wanted[1]:
            findings.append(
                model.wrong(
                    f'model_warmup "{warmup.name}": dims {list(given.dims)} are not those of {name}',
                    f"write dims: {list(wanted[1])}",
                )
            )
    return findings


def check_signature(model: Model, expected: Model, source: str) -> list[Finding]:
    """Compare inputs and outputs with those of ``expected``, which follows from ``source``."""
    return _compare(model, "input", model.inputs, expected.inputs, source) + _compare(
        model, "output", model.outputs, expected.outputs, source
    )


def check_tensors(model: Model, inputs: Signature, outputs: Signature, source: str) -> list[Finding]:
    """Compare with the tensors of the model file ``source``: all its inputs, and the outputs that ``model`` names."""
    asked = {name: tensor for name, tensor in outputs.items() if name in model.outputs}
    return _compare(model, "input", model.inputs, inputs, source) + _compare(
        model, "output", model.outputs, asked, source, choices=outputs
    )


def _compare(
    model: Model, kind: str, given: Signature, expected: Signature, source: str, *, choices: Signature | None = None
) -> list[Finding]:
    findings = [
        model.wrong(
            f"{kind} {name} is not in {source}",
            f"leave it out, or name one of {', '.join(expected if choices is None else choices)}",
        )
        for name in given
        if name not in expected
    ]
    for name, wanted in expected.items():
        if name not in given:
            findings.append(
                model.wrong(f"{kind} {name} is missing", f"add {name}, {tensor_text(wanted)}, as {source} has it")
            )
            continue
        for what, ours, theirs in zip(("data_type", "dims"), given[name], wanted, strict=True):
            if ours != theirs:
                shown = [list(value) if isinstance(value, tuple) else value for value in (ours, theirs)]
                findings.append(
                    model.wrong(
                        f"{kind} {name}: {what} {shown[0]} is not that of {source}", f"write {what}: {shown[1]}"
                    )
                )
    return findings
