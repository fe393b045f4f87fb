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
    from dmsh_serving.clickhouse.address import Address
    from dmsh_serving.triton.spec import RepositorySpec


class EncoderName(StrEnum):
    """Values of ``--encoder``."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


def repository(
    model: Annotated[
        Path, typer.Argument(help="ONNX file to serve, or a checkpoint folder: the file is then put in later.")
    ],
    gallery: Annotated[
        str,
        typer.Option(
            help="Gallery folder, which may be built later, or an address in ClickHouse.",
            metavar="GALLERY",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Model repository to write.")],
    encoder: Annotated[
        EncoderName | None,
        typer.Option(
            help="What computes the codes: ONNX Runtime (python) or OpenVINO (openvino) in the Python backend, or "
            "Triton's own backend (onnxruntime, tensorrt).  [default: openvino for a model in that dialect, or python]"
        ),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="With openvino: Triton's own backend, which checks no known answer.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="With python and openvino: threads per call.  [default: 2]")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=1, help="With openvino: parts of a batch, computed side by side.  [default: 1]")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(min=1, help="With python and openvino: processes that serve calls.  [default: 1]")
    ] = None,
    queue_delay: Annotated[
        int | None, typer.Option(min=0, help="With python and openvino: microseconds to wait for more images.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A file of dmsh-export tune: all of the above that is not given.")
    ] = None,
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
    from dmsh_export.cli import encoder_specs as specs
    from dmsh_serving.clickhouse.address import Address, is_address
    from dmsh_serving.triton.repository import write_repository
    from dmsh_serving.triton.settings import EncoderSettings, read_settings

    place = Address.parse(gallery) if is_address(gallery) else Path(gallery)
    _check_manifest(model)
    tuned = read_settings(settings) if settings else EncoderSettings()
    kind = encoder or (EncoderName(tuned.encoder) if settings else _default_encoder(model))
    if bool(plan) != (kind is EncoderName.TENSORRT):
        raise InputError("--encoder tensorrt serves the engines that --plan names; the other encoders take none")
    if accelerate and kind is not EncoderName.ONNXRUNTIME:
        raise InputError("--accelerate is for --encoder onnxruntime: Triton's own ONNX Runtime has that provider")
    if engine_cache is not None and not accelerate:
        raise InputError("--engine-cache keeps what --accelerate compiles: give both, or neither")
    if native and kind is not EncoderName.OPENVINO:
        raise InputError("--native is for --encoder openvino; onnxruntime and tensorrt are Triton's own anyway")
    given = {"threads": threads, "streams": streams, "instances": instances, "queue_delay_microseconds": queue_delay}
    if any(value is not None for value in given.values()) and kind not in (EncoderName.PYTHON, EncoderName.OPENVINO):
        raise InputError("--threads, --streams, --instances and --queue-delay are for --encoder python and openvino")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already: write elsewhere, or replace it with --overwrite")
    chosen = tuned.replaced({**given, "max_batch": max_batch})
    match kind:
        case EncoderName.PYTHON:
            spec = specs.in_python(model, place, replace(chosen, runtime="onnxruntime"))
        case EncoderName.OPENVINO if native:
            spec = specs.openvino(model, place, replace(chosen, max_batch=max_batch or 1))
        case EncoderName.OPENVINO:
            spec = specs.in_python(model, place, replace(chosen, runtime="openvino"))
        case EncoderName.ONNXRUNTIME:
            spec = specs.onnxruntime(model, place, max_batch or DEFAULT_MAX_BATCH, accelerate, engine_cache)
        case EncoderName.TENSORRT:
            spec = specs.tensorrt(model, plan or [], place, max_batch)
    spec = replace(spec, max_queue=max_queue, max_wait_seconds=max_wait)
    has_gallery = _check_gallery(place, spec)
    write_repository(out, spec)
    console().print(f"wrote {out}: start it with dmsh-serve start --repository {out}")
    if not has_gallery:
        console().print(f"{gallery} holds no gallery yet: make it with dmsh-serve gallery build before the start")
    if kind in (EncoderName.ONNXRUNTIME, EncoderName.TENSORRT) or native:
        console().print(f"it needs a Triton with the {kind.value} backend, such as NVIDIA's container")
    result = {"out": str(out), "fingerprint": spec.fingerprint, "bits": spec.bits, "gallery": str(gallery)}
    write_json(json, {**result, "encoder": kind.value, "max_batch": spec.max_batch})


def _check_gallery(place: "Path | Address", spec: "RepositorySpec") -> bool:
    """Say whether there is a gallery; refuse one whose codes the encoder's cannot be compared with."""
    from dmsh_serving import gallery

    if not isinstance(place, Path):
        from dmsh_serving.clickhouse.search import open_remote

        open_remote(place, bits=spec.bits, fingerprint=spec.fingerprint)
        return True
    if not (place / gallery.CURRENT).exists():
        return False
    gallery.open_current(place, bits=spec.bits, fingerprint=spec.fingerprint)
    return True


def _check_manifest(model: Path) -> None:
    """Refuse a model that is not the file its manifest was written for. One without a manifest is lint's to report."""
    from dmsh_export.manifest import manifest_path, read_manifest

    if model.is_file() and manifest_path(model).is_file():
        read_manifest(model)


def _default_encoder(model: Path) -> EncoderName:
    """Return OpenVINO for a file in its dialect; ONNX Runtime computes all the others."""
    from dmsh_serving.encoder.open import runtime_of

    is_openvino = model.is_file() and runtime_of(model) == "openvino"
    return EncoderName.OPENVINO if is_openvino else EncoderName.PYTHON
