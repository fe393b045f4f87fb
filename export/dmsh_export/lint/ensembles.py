"""Check that the maps of an ensemble connect its steps, with equal types."""

from collections.abc import Mapping
from typing import Any

from dmsh_export.lint.findings import Finding, Model, Signature, tensor_text

__all__ = ["check_ensemble"]

_UNKNOWN: tuple[str, tuple[int, ...]] = ("", ())  # the result of a wrong step, which is reported once


def check_ensemble(ensemble: Model, models: Mapping[str, Model]) -> list[Finding]:
    """Follow every tensor from the ensemble's inputs through its steps to its outputs.

    Steps are followed in dependency order, whatever their order in the file, as Triton does.
    """
    findings: list[Finding] = []
    flowing: Signature = dict(ensemble.inputs)
    steps = list(ensemble.config.ensemble_scheduling.step)
    if not steps:
        findings.append(ensemble.wrong("it has no steps", "add ensemble_scheduling { step [ ... ] }"))
    waiting = []
    for number, step in enumerate(steps, 1):
        where = f"step {number} ({step.model_name})"
        if step.model_name not in models:
            findings.append(
                ensemble.wrong(f"{where}: no such model in the repository", f"name one of {', '.join(sorted(models))}")
            )
            flowing |= dict.fromkeys(step.output_map.values(), _UNKNOWN)
            continue
        findings += _check_names(ensemble, where, step, models[step.model_name])
        waiting.append((where, step, models[step.model_name]))
    while waiting:
        ready = [entry for entry in waiting if set(entry[1].input_map.values()) <= flowing.keys()]
        if not ready:
            break
        for entry in ready:
            where, step, model = entry
            findings += _check_flow(ensemble, where, step, model, flowing)
            flowing |= {
                target: model.outputs.get(source, _UNKNOWN) for source, target in sorted(step.output_map.items())
            }
            waiting.remove(entry)
    for where, step, _ in waiting:
        absent = sorted(set(step.input_map.values()) - flowing.keys())
        findings.append(
            ensemble.wrong(
                f"{where}: nothing makes the tensor {', '.join(absent)}",
                f"map an input to one of {', '.join(sorted(flowing))}",
            )
        )
        flowing |= dict.fromkeys(step.output_map.values(), _UNKNOWN)
    for name, wanted in ensemble.outputs.items():
        if name not in flowing:
            findings.append(
                ensemble.wrong(f"output {name}: no step makes it", "add it to a step's output_map, or leave it out")
            )
        elif not _fits(flowing[name], wanted):
            findings.append(
                ensemble.wrong(
                    f"output {name}: {tensor_text(wanted)} is not what its step makes",
                    f"write {tensor_text(flowing[name])}",
                )
            )
    return findings + _check_batch(ensemble, [models[step.model_name] for step in steps if step.model_name in models])


def _check_names(ensemble: Model, where: str, step: Any, model: Model) -> list[Finding]:
    findings = [
        ensemble.wrong(
            f"{where}: {kind}_map has {name}, which is no {kind} of that model", f"name one of {', '.join(known)}"
        )
        for kind, names, known in (
            ("input", sorted(step.input_map), model.inputs),
            ("output", sorted(step.output_map), model.outputs),
        )
        for name in names
        if name not in known
    ]
    findings += [
        ensemble.wrong(
            f"{where}: the model's input {name} is not mapped", f'add input_map {{ key: "{name}", value: ... }}'
        )
        for name in model.inputs
        if name not in step.input_map and name not in model.optional_inputs
    ]
    if step.model_version > 0 and str(step.model_version) not in {path.name for path in model.versions}:
        findings.append(
            ensemble.wrong(
                f"{where}: model_version {step.model_version} is not in the repository",
                "write model_version: -1 for the latest",
            )
        )
    findings += [
        ensemble.wrong(
            f"{where}: output {name} becomes the tensor {made}, though the model has an output {made}",
            f'write output_map {{ key: "{name}" value: "{name}" }}',
        )
        for name, made in sorted(step.output_map.items())
        if made != name and made in model.outputs
    ]
    return findings


def _check_flow(ensemble: Model, where: str, step: Any, model: Model, flowing: Signature) -> list[Finding]:
    swapped = [
        ensemble.wrong(
            f"{where}: input {name} takes the tensor {source}, though there is a tensor {name}",
            f'write input_map {{ key: "{name}" value: "{name}" }}',
        )
        for name, source in sorted(step.input_map.items())
        if source != name and name in flowing and source in model.inputs
    ]
    return swapped + [
        ensemble.wrong(
            f"{where}: input {name} takes {tensor_text(model.inputs[name])}, {source} is "
            f"{tensor_text(flowing[source])}",
            f"make {source} {tensor_text(model.inputs[name])}, or map another tensor",
        )
        for name, source in sorted(step.input_map.items())
        if name in model.inputs and not _fits(flowing[source], model.inputs[name])
    ]


def _fits(made: tuple[str, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]]) -> bool:
    if made == _UNKNOWN:
        return True
    same_rank = len(made[1]) == len(wanted[1])
    return (
        made[0] == wanted[0]
        and same_rank
        and all(-1 in pair or pair[0] == pair[1] for pair in zip(made[1], wanted[1], strict=False))
    )


def _check_batch(ensemble: Model, steps: list[Model]) -> list[Finding]:
    if not steps:
        return []
    smallest = min(steps, key=lambda model: model.config.max_batch_size)
    if ensemble.config.max_batch_size <= smallest.config.max_batch_size:
        return []
    return [
        ensemble.wrong(
            f"max_batch_size {ensemble.config.max_batch_size} is more than its step {smallest.name} takes, "
            f"{smallest.config.max_batch_size}",
            f"write max_batch_size: {smallest.config.max_batch_size}",
        )
    ]
