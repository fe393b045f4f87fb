"""dmsh-export trt: ONNX -> TensorRT plan."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_export.engine.audit import AuditRow
    from dmsh_export.engine.build import EngineBuild
    from dmsh_export.engine.precision import Precision


class RuntimeName(StrEnum):
    """Values of ``--runtime``."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class HardwareName(StrEnum):
    """Values of ``--hardware-compatibility``."""

    NONE = "none"
    AMPERE_PLUS = "ampere-plus"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"


def trt(
    model: Annotated[Path, typer.Argument(help="ONNX file of dmsh-export; --int8 and --fp8 need Q/DQ nodes in it.")],
    out: Annotated[Path, typer.Option(help="Plan to write; its manifest goes beside it.")],
    fp32: Annotated[bool, typer.Option("--fp32", help="All layers in FP32 (TF32 off).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Trunk in FP16, head in FP32.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Trunk in BF16, head in FP32.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Trunk in INT8 as its Q/DQ nodes say, head in FP32.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="Trunk in FP8 as its Q/DQ nodes say, head in FP32.")] = False,
    min_batch: Annotated[int, typer.Option(help="Smallest batch size.")] = 1,
    opt_batch: Annotated[int, typer.Option(help="Batch size that the plan is tuned for.")] = 8,
    max_batch: Annotated[int, typer.Option(help="Largest batch size.")] = 32,
    runtime: Annotated[RuntimeName, typer.Option(help="Which TensorRT builds the plan.")] = RuntimeName.AUTO,
    workspace_mib: Annotated[int | None, typer.Option(help="Most scratch memory per layer, in MiB.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="From 0 (fast build) to 5 (fast engine).")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Timing cache to read and update; TensorRT only.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Let later TensorRT versions load the plan; TensorRT only.")
    ] = False,
    hardware_compatibility: Annotated[
        HardwareName, typer.Option(help="Other GPUs that the plan runs on; TensorRT only.")
    ] = HardwareName.NONE,
    typed_onnx: Annotated[Path | None, typer.Option(help="Also write the typed ONNX file that was compiled.")] = None,
    json: JsonOption = None,
) -> None:
    """Compile a TensorRT plan. It is written only if every layer computes in the type asked for."""
    asked = {"fp32": fp32, "fp16": fp16, "bf16": bf16, "int8": int8, "fp8": fp8}
    precision = _one_precision([name for name, given in asked.items() if given])
    from dmsh_export.engine.build import BatchProfile, EngineOptions, engine_from_onnx

    options = EngineOptions(
        precision=precision,
        profile=BatchProfile(min_batch, opt_batch, max_batch),
        runtime=runtime.value,
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility.value,
    )
    with progress() as bar:
        task = bar.add_task("reading", total=None)
        build = engine_from_onnx(
            model,
            out,
            options,
            typed_out=typed_onnx,
            on_progress=lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total),
        )
    _print_build(build, precision)
    write_json(json, build.to_dict())


def _one_precision(asked: list[str]) -> "Precision":
    from dmsh_export.engine.precision import Precision

    choices: tuple[Precision, ...] = get_args(Precision)
    chosen = [name for name in choices if name in asked]
    if len(chosen) != 1:
        given = " and ".join(f"--{name}" for name in chosen) or "none"
        raise InputError(f"give exactly one of {', '.join(f'--{name}' for name in choices)}; given: {given}")
    return chosen[0]


def _print_build(build: "EngineBuild", precision: str) -> None:
    not_audited = "" if build.engine_audited else " (not audited: it does not show the types of trunk and head)"
    for title, rows in (("Parsed network", build.network_audit), (f"Built engine{not_audited}", build.engine_audit)):
        if rows:
            print_table(
                f"{title}: layers by type",
                ["part", "type", "layers", "convolutions and products", "MFLOP per image"],
                [[row.part, row.type, str(row.layers), str(row.products), _megaflops(row)] for row in rows],
            )
    rounding = build.rounding
    if rounding.values:
        line = (
            f"{rounding.to_zero:,} of the {rounding.values:,} weights in {precision} became 0 and "
            f"{rounding.to_subnormal:,} became subnormal"
        )
        console().print(line + (f", most in {rounding.tensors[0]}" if rounding.tensors else ""))
    if build.parent_fingerprint:
        console().print(
            f"its codes are a code space of their own ({build.fingerprint[:12]}), made from that of "
            f"{build.parent_fingerprint[:12]}"
        )
    if build.proof.proven is not None:
        proven = "proven" if build.proof.proven else "not proven yet"
        console().print(f"its codes are {proven}: {build.proof.why}")
    if not build.engine_audit:
        console().print("the engine's own layers are not audited: no GPU has compiled and loaded it here")
    console().print(f"built with {build.choice.flavour} {build.version} ({build.choice.why})")
    console().print(f"wrote {build.path}")


def _megaflops(row: "AuditRow") -> str:
    # Layers without products, and an engine's, have work that is not known here.
    return f"{row.flops / 1e6:,.1f}" if row.flops else "-"
