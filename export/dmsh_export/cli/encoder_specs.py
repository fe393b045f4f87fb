"""What dmsh-export repository writes for each kind of encoder."""

from pathlib import Path
from typing import Any

from dmsh_export.engine.manifest import PlanManifest, read_plan_manifest
from dmsh_export.engine.targets import served_capabilities
from dmsh_export.graph import metadata_of, model_from_file
from dmsh_serving.clickhouse.address import Address
from dmsh_serving.console import console
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError
from dmsh_serving.triton.settings import EncoderSettings
from dmsh_serving.triton.spec import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    Plan,
    PythonBackend,
    RepositorySpec,
    TensorRTAccelerator,
    TensorRTBackend,
)

__all__ = ["in_python", "onnxruntime", "openvino", "tensorrt"]


def in_python(model: Path, gallery: Path | Address, settings: EncoderSettings) -> RepositorySpec:
    """Return the repository of ``model``, or of a checkpoint's folder, with the runtime in the Python backend."""
    common: dict[str, Any] = {
        "encoder": PythonBackend(settings.threads, settings.runtime, settings.streams, settings.instances),
        "max_batch": settings.max_batch,
        "queue_delay_microseconds": settings.queue_delay_microseconds,
    }
    if model.is_dir():
        import dmsh_model

        network = dmsh_model.load(model)
        config = network.config
        return RepositorySpec(
            gallery, config.bits, config.image_size, network.fingerprint, framing=config.framing, **common
        )
    with open_encoder(model, settings.runtime) as opened:
        return RepositorySpec(
            gallery,
            opened.bits,
            opened.image_size,
            opened.fingerprint,
            parent_fingerprint=opened.metadata.parent_fingerprint,
            model=model,
            known_answer=opened.metadata.known_answer,
            framing=opened.framing,
            **common,
        )


def openvino(model: Path, gallery: Path | Address, settings: EncoderSettings) -> RepositorySpec:
    """Return the repository of ``model`` in Triton's own OpenVINO backend."""
    said = _metadata(model)
    said.check_encodes(str(model))
    if said.dialect not in (None, "openvino"):
        raise InputError(
            f"{model} is in the {said.dialect} dialect, which OpenVINO cannot serve: export it with --dialect openvino"
        )
    return _native(
        model,
        said,
        gallery,
        encoder=OpenVinoBackend(settings.threads, settings.streams),
        max_batch=settings.max_batch,
        queue_delay_microseconds=settings.queue_delay_microseconds,
    )


def onnxruntime(
    model: Path, gallery: Path | Address, max_batch: int, accelerate: bool, cache: str | None
) -> RepositorySpec:
    """Return the repository of ``model`` in Triton's own ONNX Runtime backend."""
    said = _metadata(model)
    said.check_encodes(str(model))
    accelerator = _accelerator(model, said.precision, cache) if accelerate else None
    return _native(model, said, gallery, encoder=OnnxRuntimeBackend(accelerator), max_batch=max_batch)


def _native(model: Path, said: EncoderMetadata, gallery: Path | Address, **chosen: Any) -> RepositorySpec:
    """Return the repository of an ONNX file that a backend of Triton itself runs."""
    said.check_graph(model.read_bytes(), str(model))
    return RepositorySpec(
        gallery,
        said.bits,
        said.image_size,
        said.fingerprint,
        parent_fingerprint=said.parent_fingerprint,
        model=model,
        known_answer=said.known_answer,
        framing=said.framing,
        **chosen,
    )


def _accelerator(model: Path, precision: str | None, cache: str | None) -> TensorRTAccelerator:
    if precision not in (None, "fp32"):
        raise InputError(
            f"{model} is {precision}: ONNX Runtime's TensorRT provider would choose the type of every layer itself, "
            "the head's too, and its codes would be others; leave --accelerate out, or use --encoder tensorrt"
        )
    return TensorRTAccelerator(cache=cache)


def tensorrt(model: Path, plans: list[Path], gallery: Path | Address, max_batch: int | None) -> RepositorySpec:
    """Return the repository of ``plans``, engines built from ``model``, in Triton's TensorRT backend."""
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
    encoder = TensorRTBackend(tuple(map(_served, manifests, shares)))
    return RepositorySpec(
        gallery,
        first.bits,
        first.image_size,
        first.fingerprint,
        parent_fingerprint=first.parent_fingerprint,
        encoder=encoder,
        known_answer=said.known_answer if said.fingerprint == first.fingerprint else None,
        max_batch=max_batch or encoder.max_batch,
        framing=said.framing,
    )


def _served(manifest: PlanManifest, capabilities: tuple[str, ...]) -> Plan:
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


def _metadata(model: Path) -> EncoderMetadata:
    return EncoderMetadata.from_props(metadata_of(model_from_file(model)), str(model))
