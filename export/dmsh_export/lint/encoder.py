"""The encoder's files, against which its configuration is checked: the ONNX file and the plans' manifests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsh_export.engine.targets import PlanTargets
from dmsh_export.lint.findings import Finding, Model, Signature
from dmsh_export.manifest import manifest_path, read_manifest
from dmsh_serving.codes import bytes_per_code
from dmsh_serving.contract import CODE, IMAGE, LOGITS, MODEL_FILE, PLAN_FILE
from dmsh_serving.encoder.base import RUNTIMES
from dmsh_serving.encoder.metadata import EncoderMetadata
from dmsh_serving.errors import InputError

__all__ = ["EncoderFile", "check_plans", "check_runtime", "encoder_files"]

DEFAULT_FILES = {"python": MODEL_FILE, "onnxruntime": MODEL_FILE, "openvino": "model.xml", "tensorrt": PLAN_FILE}
_MAKE_AGAIN = {
    ".onnx": "export the model again, then dmsh-export repository",
    ".plan": "build the plan again with dmsh-export trt --runtime tensorrt, then dmsh-export repository",
}
_BF16_NOTE = (
    "Triton's OpenVINO backend cannot be told to keep FP32, so on a CPU with bf16 the codes are wrong; "
    "dmsh-export parity CHECKPOINT shows it"
)


@dataclass(frozen=True)
class EncoderFile:
    """The properties of one model file.

    Attributes:
        file: its name, as seen from the repository.
        fingerprint: its code space.
        parent_fingerprint: the code space that a low-precision encoder approximates.
        bits: of a code.
        image_size: side of an image in pixels.
        inputs: its input tensors, without the batch dimension.
        outputs: its output tensors, without the batch dimension.
        max_batch: the largest batch that it takes; None for any.
        dialect: of an integer model.
        targets: the GPUs that a plan runs on.
        note: a remark for people that is no mistake.
        framing: how pictures become its images; None if the file does not say.
    """

    file: str
    fingerprint: str
    parent_fingerprint: str | None
    bits: int
    image_size: int
    inputs: Signature
    outputs: Signature
    max_batch: int | None = None
    dialect: str | None = None
    targets: PlanTargets | None = None
    note: str | None = None
    framing: str | None = None


def encoder_files(model: Model) -> tuple[list[EncoderFile], list[Finding]]:
    """Read every model file that the encoder's configuration names, in each version."""
    found: list[EncoderFile] = []
    findings: list[Finding] = []
    for version in model.versions:
        for name in _file_names(model):
            path = version / name
            shown = f"{model.name}/{version.name}/{name}"
            if not path.is_file():
                findings.append(
                    Finding(shown, "the file is missing", "put it there with dmsh-export repository MODEL --out ...")
                )
                continue
            try:
                if model.backend != "tensorrt" and manifest_path(path).is_file():
                    read_manifest(path)
                is_plan, in_openvino = model.backend == "tensorrt", model.backend == "openvino"
                found.append(_plan(path, shown) if is_plan else _onnx(path, shown, in_openvino))
            except InputError as error:
                advice = _MAKE_AGAIN[".plan" if model.backend == "tensorrt" else ".onnx"]
                findings.append(Finding(shown, str(error).replace(str(path), name), advice))
    return found, findings


def check_plans(model: Model, files: list[EncoderFile]) -> list[Finding]:
    """Check that each GPU gets a plan that was built for it, and batches that the plan takes."""
    findings = []
    by_name = {Path(file.file).name: file for file in files}
    for capability, name in sorted(model.config.cc_model_filenames.items()):
        targets = by_name[name].targets if name in by_name else None
        if targets is not None and not targets.includes(capability):
            findings.append(
                model.wrong(
                    f"cc_model_filenames gives {name} to GPUs of compute capability {capability}, it was built for "
                    f"{targets.text}",
                    f'write key: "{targets.gpu.compute_capability}"' if targets.gpu else "name another plan",
                )
            )
    findings += [
        model.wrong(
            f"max_batch_size {model.config.max_batch_size} is more than the profile of {file.file} allows, "
            f"{file.max_batch}",
            f"write max_batch_size: {file.max_batch}, or build with --max-batch {model.config.max_batch_size}",
        )
        for file in files
        if file.max_batch is not None and model.config.max_batch_size > file.max_batch
    ]
    return findings


def check_runtime(model: Model, files: list[EncoderFile]) -> list[Finding]:
    """Check that the encoder's runtime is one that can compute the dialect of its file exactly."""
    in_python = model.backend == "python"
    runtime = model.parameter("runtime") if in_python else model.backend
    if in_python and runtime not in RUNTIMES:
        return [
            model.wrong(
                f"parameter runtime is {runtime or 'missing'}, there are {', '.join(RUNTIMES)}", "write one of them"
            )
        ]
    return [
        model.wrong(
            f"{file.file} is in the {file.dialect} dialect, which OpenVINO does not compute exactly",
            "put in a file of dmsh-export onnx --dialect openvino, or use the runtime of its dialect",
        )
        for file in files
        if runtime == "openvino" and file.dialect not in (None, "openvino")
    ]


def _file_names(model: Model) -> list[str]:
    default = model.config.default_model_filename or DEFAULT_FILES.get(model.backend, "")
    if model.backend == "python":
        return [MODEL_FILE]  # default_model_filename is the Python file's here
    return sorted({default, *model.config.cc_model_filenames.values()} - {""})


def _onnx(path: Path, shown: str, in_openvino_backend: bool) -> EncoderFile:
    from dmsh_export.graph import bytes_of_model, metadata_of, model_from_bytes
    from dmsh_export.prove.meaning import dialect_of

    content = bytes_of_model(path)
    proto = model_from_bytes(content, path)
    said = EncoderMetadata.from_props(metadata_of(proto), str(path))
    said.check_graph(content, str(path))
    integer = any(node.op_type in ("QLinearConv", "QuantizeLinear") for node in proto.graph.node)
    inputs, outputs = (
        {value.name: _tensor_of(value) for value in values} for values in (proto.graph.input, proto.graph.output)
    )
    return EncoderFile(
        file=shown,
        fingerprint=said.fingerprint,
        parent_fingerprint=said.parent_fingerprint,
        bits=said.bits,
        image_size=said.image_size,
        inputs=inputs,
        outputs=outputs,
        dialect=dialect_of(proto.graph) if said.dialect and integer else said.dialect,  # its own, whatever it says
        note=_BF16_NOTE if in_openvino_backend and said.dialect else None,
        framing=str(said.framing),
    )


def _tensor_of(value: Any) -> tuple[str, tuple[int, ...]]:
    import onnx

    types = {
        onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.INT8: "TYPE_INT8", onnx.TensorProto.FLOAT: "TYPE_FP32",
        onnx.TensorProto.FLOAT16: "TYPE_FP16", onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    }  # fmt: skip
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return types.get(tensor.elem_type, onnx.TensorProto.DataType.Name(tensor.elem_type)), tuple(dims[1:])


def _plan(path: Path, shown: str) -> EncoderFile:
    from dmsh_export.engine.manifest import read_plan_manifest

    said = read_plan_manifest(path)
    if said.flavour != "tensorrt":
        raise InputError(f"a {said.flavour} engine, which Triton's TensorRT backend cannot load")
    size = said.image_size
    return EncoderFile(
        file=shown,
        fingerprint=said.fingerprint,
        parent_fingerprint=said.parent_fingerprint,
        bits=said.bits,
        image_size=size,
        inputs={IMAGE: ("TYPE_UINT8", (size, size, 3))},
        outputs={CODE: ("TYPE_UINT8", (bytes_per_code(said.bits),)), LOGITS: ("TYPE_FP32", (said.bits,))},
        max_batch=said.max_batch,
        targets=said.targets,
        note=said.what_is_unproven,
    )
