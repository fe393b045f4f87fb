"""The text of each model's ``config.pbtxt``: the same bytes for the same spec.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from dmsh_serving.codes import bytes_per_code
from dmsh_serving.contract import (
    CODE,
    DECODE_MODEL,
    DISTANCES,
    ENCODER_MODEL,
    FILE,
    FILTER,
    GALLERY_VERSION,
    IDS,
    IMAGE,
    KEYS,
    LOGITS,
    RADIUS,
    RANKER_MODEL,
    RERANK,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
    K,
)
from dmsh_serving.triton.encoder_config import VERSION_COMPATIBLE
from dmsh_serving.triton.spec import (
    OnnxRuntimeEncoder,
    PythonEncoder,
    RepositorySpec,
    TensorRTAccelerator,
    TensorRTEncoder,
)


def config_texts(spec: RepositorySpec, gallery: str) -> dict[str, str]:
    """Return each model's configuration; ``gallery`` is its folder as seen from the ranker's."""
    return {
        DECODE_MODEL: _python_config(
            spec,
            DECODE_MODEL,
            inputs=[_tensor(FILE, "STRING", [1])],
            outputs=[_image(spec)],
            parameters={"image_size": str(spec.image_size), "threads": str(spec.decode_threads)},
        ),
        ENCODER_MODEL: _encoder_config(spec),
        RANKER_MODEL: _python_config(
            spec,
            RANKER_MODEL,
            # Without this, requests with filters of different lengths would each be a call of their own.
            inputs=[_code(spec), *_asked("allow_ragged_batch"), _tensor(LOGITS, "FP32", [spec.bits], "optional")],
            outputs=_results(),
            parameters={"gallery": gallery, "threads": str(spec.ranker_threads)},
        ),
        SEARCH_MODEL: _ensemble_config(spec, SEARCH_MODEL, _image(spec), []),
        SEARCH_FILE_MODEL: _ensemble_config(
            spec, SEARCH_FILE_MODEL, _tensor(FILE, "STRING", [1]), [_step(DECODE_MODEL, [FILE], [IMAGE])]
        ),
    }


def _encoder_config(spec: RepositorySpec) -> str:
    inputs, outputs = [_image(spec)], [_code(spec), _tensor(LOGITS, "FP32", [spec.bits])]
    parent = {} if spec.parent_fingerprint is None else {"parent_fingerprint": spec.parent_fingerprint}
    match spec.encoder:
        case PythonEncoder(threads):
            return _python_config(
                spec, ENCODER_MODEL, inputs=inputs, outputs=outputs, parameters={"threads": str(threads), **parent}
            )
        case OnnxRuntimeEncoder(accelerator):
            kind = "KIND_AUTO" if accelerator is None else "KIND_GPU"
            return _lines(
                *_head(spec, ENCODER_MODEL, 'platform: "onnxruntime_onnx"', inputs, outputs),
                _instances(kind),
                _dynamic_batching(spec),
                *([] if accelerator is None else [_accelerator(accelerator)]),
                _warmup(spec, sorted({1, spec.max_batch})),
                _parameters(spec, parent),
            )
        case TensorRTEncoder() as encoder:
            sizes = sorted({size for plan in encoder.plans for size in (plan.opt_batch, plan.max_batch)})
            preferred = [size for size in sizes if size <= spec.max_batch] or [spec.max_batch]
            return _lines(
                *_version_note(encoder),
                *_head(spec, ENCODER_MODEL, 'platform: "tensorrt_plan"', inputs, outputs),
                *_plan_files(encoder),
                _instances("KIND_GPU"),
                _dynamic_batching(spec, preferred),
                _warmup(spec, sorted({1, *preferred})),
                _parameters(spec, {**parent, **_version_compatibility(encoder)}),
            )


def _ensemble_config(spec: RepositorySpec, name: str, source: str, first_steps: list[str]) -> str:
    steps = [
        *first_steps,
        _step(ENCODER_MODEL, [IMAGE], [CODE, LOGITS]),
        _step(RANKER_MODEL, [CODE, LOGITS, K, RADIUS, FILTER, RERANK], [IDS, DISTANCES, KEYS, GALLERY_VERSION]),
    ]
    return _lines(
        *_head(spec, name, 'platform: "ensemble"', [source, *_asked()], [_code(spec), *_results()]),
        "ensemble_scheduling {\n" + _indent(_list("step", steps)) + "\n}",
        _parameters(spec, {}),
    )


def _python_config(
    spec: RepositorySpec, name: str, *, inputs: list[str], outputs: list[str], parameters: dict[str, str]
) -> str:
    return _lines(
        *_head(spec, name, 'backend: "python"', inputs, outputs),
        _instances("KIND_CPU"),
        _dynamic_batching(spec),
        _parameters(spec, parameters),
    )


def _head(spec: RepositorySpec, name: str, runs_on: str, inputs: list[str], outputs: list[str]) -> list[str]:
    return [
        f'name: "{name}"',
        runs_on,
        f"max_batch_size: {spec.max_batch}",
        _list("input", inputs),
        _list("output", outputs),
    ]


def _instances(kind: str) -> str:
    return _list("instance_group", [f"{{ count: 1, kind: {kind} }}"])


def _dynamic_batching(spec: RepositorySpec, preferred: list[int] | None = None) -> str:
    """No delay: whatever waits while a call runs is the next call's batch."""
    policy = []
    if spec.max_queue is not None:
        policy.append(f"max_queue_size: {spec.max_queue}")
    if spec.max_wait_seconds is not None:
        policy += [f"default_timeout_microseconds: {spec.max_wait_seconds * 1_000_000}", "allow_timeout_override: true"]
    fields = [f"preferred_batch_size: {preferred}"] if preferred else []
    if policy:
        fields.append("default_queue_policy {\n" + _indent("\n".join(policy)) + "\n}")
    return "dynamic_batching {\n" + _indent("\n".join(fields)) + "\n}" if fields else "dynamic_batching {}"


def _version_note(encoder: TensorRTEncoder) -> list[str]:
    if not _version_compatibility(encoder):
        return []
    return [
        "# A version-compatible engine: dmsh-serve start gives Triton\n"
        "# --backend-config=tensorrt,version-compatible=true, which lets it run code from the engine. Without it,\n"
        "# Triton loads the engine only if it has the very TensorRT version that built it."
    ]


def _version_compatibility(encoder: TensorRTEncoder) -> dict[str, str]:
    """Return the parameter by which the launcher knows how to start Triton; empty where there is no need."""
    return {VERSION_COMPATIBLE: "true"} if any(plan.version_compatible for plan in encoder.plans) else {}


def _plan_files(encoder: TensorRTEncoder) -> list[str]:
    default = f'default_model_filename: "{encoder.file_of(encoder.plans[0])}"'
    if len(encoder.plans) == 1:
        return [default]
    files = {capability: encoder.file_of(plan) for plan in encoder.plans for capability in plan.capabilities}
    ordered = sorted(files, key=lambda capability: [int(part) for part in capability.split(".")])
    return [
        default,
        _list(
            "cc_model_filenames", [f'{{ key: "{capability}", value: "{files[capability]}" }}' for capability in ordered]
        ),
    ]


def _accelerator(accelerator: TensorRTAccelerator) -> str:
    parameters = {
        "precision_mode": "FP32",
        "max_workspace_size_bytes": str(accelerator.workspace_mib << 20),
    }
    if accelerator.cache is not None:
        parameters |= {"trt_engine_cache_enable": "true", "trt_engine_cache_path": accelerator.cache}
    lines = [f'parameters {{ key: "{key}", value: "{_escaped(value)}" }}' for key, value in parameters.items()]
    item = "{\n" + _indent("\n".join(['name: "tensorrt"', *lines])) + "\n}"
    block = _list("gpu_execution_accelerator", [item])
    return (
        "# This provider leaves TF32 on: start Triton with NVIDIA_TF32_OVERRIDE=0, and prove the served codes with\n"
        "# dmsh-export parity CHECKPOINT triton://host:port/" + ENCODER_MODEL + "\n"
        "optimization {\n" + _indent("execution_accelerators {\n" + _indent(block) + "\n}") + "\n}"
    )


def _warmup(spec: RepositorySpec, batch_sizes: list[int]) -> str:
    """Run every batch size that matters once before the model is ready: the first call of a shape is slow."""
    size = spec.image_size
    value = f"{{ data_type: TYPE_UINT8, dims: {[size, size, 3]}, random_data: true }}"
    return _list(
        "model_warmup",
        [
            f'{{ name: "batch of {batch}", batch_size: {batch}, inputs {{ key: "{IMAGE}", value: {value} }} }}'
            for batch in batch_sizes
        ],
    )


def _image(spec: RepositorySpec) -> str:
    return _tensor(IMAGE, "UINT8", [spec.image_size, spec.image_size, 3])


def _code(spec: RepositorySpec) -> str:
    return _tensor(CODE, "UINT8", [bytes_per_code(spec.bits)])


def _results() -> list[str]:
    return [
        _tensor(IDS, "INT64", [-1]),
        _tensor(DISTANCES, "INT32", [-1]),
        _tensor(KEYS, "STRING", [-1]),
        _tensor(GALLERY_VERSION, "STRING", [1]),
    ]


def _tensor(name: str, dtype: str, dims: list[int], *options: str) -> str:
    fields = [
        f'name: "{name}"',
        f"data_type: TYPE_{dtype}",
        f"dims: {dims}",
        *(f"{option}: true" for option in options),
    ]
    return "{ " + ", ".join(fields) + " }"


def _asked(*of_filter: str) -> list[str]:
    """Return the inputs by which a client says more about its search; ``of_filter`` are options of the filter's."""
    return [
        _tensor(K, "INT64", [1], "optional"),
        _tensor(RADIUS, "INT64", [1], "optional"),
        _tensor(FILTER, "INT64", [-1], "optional", *of_filter),
        _tensor(RERANK, "STRING", [1], "optional"),
    ]


def _step(model: str, inputs: list[str], outputs: list[str]) -> str:
    maps = [f'input_map {{ key: "{name}", value: "{name}" }}' for name in inputs]
    maps += [f'output_map {{ key: "{name}", value: "{name}" }}' for name in outputs]
    return "{\n" + _indent("\n".join([f'model_name: "{model}"', "model_version: -1", *maps])) + "\n}"


def _parameters(spec: RepositorySpec, own: dict[str, str]) -> str:
    every = {"bits": str(spec.bits), "fingerprint": spec.fingerprint, **own}
    return "\n".join(
        f'parameters {{ key: "{name}", value {{ string_value: "{_escaped(every[name])}" }} }}' for name in sorted(every)
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _list(field: str, items: list[str]) -> str:
    return f"{field} [\n" + ",\n".join(_indent(item) for item in items) + "\n]"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _lines(*parts: str) -> str:
    return "\n".join(parts) + "\n"
