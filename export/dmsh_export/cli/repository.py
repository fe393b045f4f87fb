"""dmsh-export repository: an encoder and a gallery -> a Triton model repository."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.console import JsonOption, console, write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_export.engine.manifest import PlanManifest
    from dmsh_serving.encoder.metadata import EncoderMetadata
    from dmsh_serving.triton.spec import Plan, RepositorySpec, TensorRTAccelerator


class EncoderName(StrEnum):
    """Values of ``--encoder``."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


def repository(
    model: Annotated[
        Path, typer.Argument(help="ONNX file to serve, or a checkpoint folder: the file is then put in later.")
    ],
    gallery: Annotated[Path, typer.Option(help="Gallery folder; it may be built later.")],
    out: Annotated[Path, typer.Option(help="Model repository to write.")],
    encoder: Annotated[EncoderName, typer.Option(help="Backend that computes the codes.")] = EncoderName.PYTHON,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="With tensorrt: an engine built from MODEL; repeat it for each kind of GPU."),
    ] = None,
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="With onnxruntime: let its TensorRT provider compile the model.")
    ] = False,
    engine_cache: Annotated[
        str | None, typer.Option(help="With --accelerate: folder on the server for the compiled engines.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help=f"Most images per call.  [default: {DEFAULT_MAX_BATCH}, or the plan's]")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=1, help="Most waiting requests per model; more are refused at once.")
    ] = None,
    max_wait: Annotated[
        int | None, typer.Option(min=1, help="Drop a request that has waited this many seconds.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the repository at --out.")] = False,
    json: JsonOption = None,
) -> None:
    """Write the Triton model repository of a model and a gallery."""
    from dmsh_serving.triton.repository import write_repository

    if bool(plan) != (encoder is EncoderName.TENSORRT):
        raise InputError("--encoder tensorrt serves the engines that --plan names; the other encoders take none")
    if accelerate and encoder is not EncoderName.ONNXRUNTIME:
        raise InputError("--accelerate is for --encoder onnxruntime: Triton's own ONNX Runtime has that provider")
    if engine_cache is not None and not accelerate:
        raise InputError("--engine-cache keeps what --accelerate compiles: give both, or neither")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already: write elsewhere, or replace it with --overwrite")
    _check_manifest(model)
    match encoder:
        case EncoderName.PYTHON:
            spec = _python_spec(model, gallery, max_batch or DEFAULT_MAX_BATCH)
        case EncoderName.ONNXRUNTIME:
            spec = _onnxruntime_spec(model, gallery, max_batch or DEFAULT_MAX_BATCH, accelerate, engine_cache)
        case EncoderName.TENSORRT:
            spec = _tensorrt_spec(model, plan or [], gallery, max_batch)
    spec = replace(spec, max_queue=max_queue, max_wait_seconds=max_wait)
    has_gallery = _check_gallery(gallery, spec)
    write_repository(out, spec)
    console().print(f"wrote {out}: start it with dmsh-serve start --repository {out}")
    if not has_gallery:
        console().print(f"{gallery} holds no gallery yet: make it with dmsh-serve gallery build before the start")
    if encoder is not EncoderName.PYTHON:
        console().print(f"it needs a Triton with the {encoder.value} backend, such as NVIDIA's container")
    result = {"out": str(out), "fingerprint": spec.fingerprint, "bits": spec.bits, "gallery": str(gallery)}
    write_json(json, {**result, "encoder": encoder.value, "max_batch": spec.max_batch})


def _check_gallery(folder: Path, spec: "RepositorySpec") -> bool:
    """Say whether there is a gallery; refuse one whose codes the encoder's cannot be compared with."""
    from dmsh_serving import gallery

    if not (folder / gallery.CURRENT).exists():
        return False
    gallery.open_current(folder, bits=spec.bits, fingerprint=spec.fingerprint)
    return True


def _check_manifest(model: Path) -> None:
    """Refuse a model that is not the file its manifest was written for. One without a manifest is lint's to report."""
    from dmsh_export.manifest import manifest_path, read_manifest

    if model.is_file() and manifest_path(model).is_file():
        read_manifest(model)


def _python_spec(model: Path, gallery: Path, max_batch: int) -> "RepositorySpec":
    from dmsh_serving.encoder.runtime import OnnxEncoder
    from dmsh_serving.triton.spec import RepositorySpec

    if model.is_dir():
        import dmsh_model

        network = dmsh_model.load(model)
        config = network.config
        return RepositorySpec(
            gallery,
            config.bits,
            config.image_size,
            network.fingerprint,
            max_batch=max_batch,
            framing=config.framing,
        )
    with OnnxEncoder(model) as opened:
        return RepositorySpec(
            gallery,
            opened.bits,
            opened.image_size,
            opened.fingerprint,
            parent_fingerprint=opened.metadata.parent_fingerprint,
            model=model,
            max_batch=max_batch,
            framing=opened.framing,
        )


def _onnxruntime_spec(
    model: Path, gallery: Path, max_batch: int, accelerate: bool, cache: str | None
) -> "RepositorySpec":
    from dmsh_serving.triton.spec import OnnxRuntimeEncoder, RepositorySpec

    said = _metadata(model)
    accelerator = _accelerator(model, said.precision, cache) if accelerate else None
    return RepositorySpec(
        gallery,
        said.bits,
        said.image_size,
        said.fingerprint,
        parent_fingerprint=said.parent_fingerprint,
        model=model,
        encoder=OnnxRuntimeEncoder(accelerator),
        max_batch=max_batch,
        framing=said.framing,
    )


def _accelerator(model: Path, precision: str | None, cache: str | None) -> "TensorRTAccelerator":
    from dmsh_serving.triton.spec import TensorRTAccelerator

    if precision not in (None, "fp32"):
        raise InputError(
            f"{model} is {precision}: ONNX Runtime's TensorRT provider would choose the type of every layer itself, "
            "the head's too, and its codes would be others; leave --accelerate out, or use --encoder tensorrt"
        )
    return TensorRTAccelerator(cache=cache)


def _tensorrt_spec(model: Path, plans: list[Path], gallery: Path, max_batch: int | None) -> "RepositorySpec":
    from dmsh_export.engine.manifest import read_plan_manifest
    from dmsh_export.engine.targets import served_capabilities
    from dmsh_serving.triton.spec import RepositorySpec, TensorRTEncoder

    manifests = [read_plan_manifest(path) for path in plans]
    spaces = {(manifest.fingerprint, manifest.bits, manifest.image_size) for manifest in manifests}
    if len(spaces) > 1:
        raise InputError(
            "the plans are of different code spaces, whose codes cannot be compared: "
            + ", ".join(f"{manifest.path} has fingerprint {manifest.fingerprint[:12]}" for manifest in manifests)
        )
    said = _metadata(model)
    ours = said.fingerprint
    first = manifests[0]
    if ours not in (first.fingerprint, first.parent_fingerprint):
        raise InputError(
            f"{first.path} was not built from {model}: its fingerprint is {first.fingerprint[:12]}, the model's "
            f"{ours[:12]}; build it with dmsh-export trt {model}"
        )
    for manifest in manifests:
        if manifest.what_is_unproven:
            console().print(f"note: {manifest.path}: {manifest.what_is_unproven}; dmsh-export parity CHECKPOINT does")
    # The first is what a GPU of no known capability gets.
    manifests.sort(key=lambda manifest: manifest.targets.hardware_compatibility != "ampere-plus")
    shares = served_capabilities([manifest.targets for manifest in manifests])
    encoder = TensorRTEncoder(tuple(map(_served, manifests, shares)))
    return RepositorySpec(
        gallery,
        first.bits,
        first.image_size,
        first.fingerprint,
        parent_fingerprint=first.parent_fingerprint,
        encoder=encoder,
        max_batch=max_batch or encoder.max_batch,
        framing=said.framing,
    )


def _served(manifest: "PlanManifest", capabilities: tuple[str, ...]) -> "Plan":
    from dmsh_serving.triton.spec import Plan

    if manifest.flavour != "tensorrt" or manifest.targets.gpu is None:
        raise InputError(
            f"{manifest.path} is a {manifest.flavour} engine, Triton loads TensorRT's own only: build it with "
            "--runtime tensorrt on the GPU that is to serve it, or serve the ONNX file with --encoder onnxruntime"
        )
    return Plan(
        manifest.path,
        capabilities,
        manifest.min_batch,
        manifest.opt_batch,
        manifest.max_batch,
        manifest.version_compatible,
    )


def _metadata(model: Path) -> "EncoderMetadata":
    from dmsh_export.graph import metadata_of, model_from_file
    from dmsh_serving.encoder.metadata import EncoderMetadata

    return EncoderMetadata.from_props(metadata_of(model_from_file(model)), str(model))
