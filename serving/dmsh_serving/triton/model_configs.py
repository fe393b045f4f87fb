"""The text of each model's ``config.pbtxt``, written by protobuf: the same bytes for the same spec.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

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
    MODEL_FILE,
    RADIUS,
    RANKER_MODEL,
    RERANK,
    SEARCH_FILE_MODEL,
    SEARCH_MODEL,
    VERSION_COMPATIBLE,
    K,
)
from dmsh_serving.errors import MissingError
from dmsh_serving.triton.canary import Canary
from dmsh_serving.triton.spec import (
    OnnxRuntimeBackend,
    OpenVinoBackend,
    PythonBackend,
    RepositorySpec,
    TensorRTAccelerator,
    TensorRTBackend,
)

__all__ = ["config_texts"]

Fields = dict[str, Any]  # a protobuf message in its JSON form

_DECODE_THREADS: Final = 2
_RANKER_THREADS: Final = 1

_VERSION_NOTE: Final = """\
# A version-compatible engine: with DMSH_TRUST_PLAN_CODE=1, dmsh-serve start gives Triton
# --backend-config=tensorrt,version-compatible=true, which lets it run code from the engine. Without it,
# Triton loads the engine only if it has the very TensorRT version that built it.
"""
_ACCELERATOR_NOTE: Final = f"""\
# This provider leaves TF32 on: start Triton with NVIDIA_TF32_OVERRIDE=0 (dmsh-serve does), and prove the served codes
# with dmsh-export parity CHECKPOINT triton://host:port/{ENCODER_MODEL}
"""
_OPENVINO_NOTE: Final = f"""\
# This backend cannot be told to keep FP32: on a CPU with bf16 (AMX, or avx512_bf16 in /proc/cpuinfo) the head of an
# integer network is wrong in it. Prove the served codes with dmsh-export parity CHECKPOINT
# triton://host:port/{ENCODER_MODEL}; dmsh-export repository --encoder openvino without --native is exact on every CPU.
# It pads each call to max_batch_size images.
"""


def config_texts(spec: RepositorySpec, gallery: str) -> dict[str, str]:
    """Return each model's configuration; ``gallery`` is its folder as seen from the ranker's.

    Raises:
        MissingError: the package with Triton's protobuf messages is not installed.
    """
    decode_file = {"model_name": DECODE_MODEL, "model_version": -1, **_maps([FILE], [IMAGE])}
    file = _tensor(FILE, "STRING", [1])
    return {
        DECODE_MODEL: _text(
            _python_model(spec, DECODE_MODEL, [file], [_image(spec)]) | _parameters(spec, _decoding(spec))
        ),
        ENCODER_MODEL: _note(spec) + _text(_encoder(spec)),
        RANKER_MODEL: _text(
            # Without ragged batches, requests with filters of different lengths would each be a call of their own.
            _python_model(
                spec,
                RANKER_MODEL,
                [_code(spec), *_asked(allow_ragged_batch=True), _tensor(LOGITS, "FP32", [spec.bits], optional=True)],
                _results(),
            )
            | _parameters(spec, {"gallery": gallery, "threads": str(_RANKER_THREADS)})
        ),
        SEARCH_MODEL: _text(_ensemble(spec, SEARCH_MODEL, _image(spec), [])),
        SEARCH_FILE_MODEL: _text(_ensemble(spec, SEARCH_FILE_MODEL, file, [decode_file])),
    }


def _text(config: Fields) -> str:
    try:
        from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingError(
            f"{error.name} is not installed, which writes config.pbtxt: pip install 'dmsh-toolkit[export]'"
        ) from error
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    text: str = text_format.MessageToString(message, use_short_repeated_primitives=True)
    return text


def _decoding(spec: RepositorySpec) -> dict[str, str]:
    canary = {} if spec.known_answer is None else Canary.of_known_answer(spec.known_answer).parameters()
    own = {"image_size": str(spec.image_size), "framing": str(spec.framing), "threads": str(_DECODE_THREADS)}
    return {**own, **canary}


def _note(spec: RepositorySpec) -> str:
    """Return the comment above an encoder's configuration: what must be known to start Triton with it."""
    match spec.encoder:
        case OnnxRuntimeBackend(TensorRTAccelerator()):
            return _ACCELERATOR_NOTE
        case TensorRTBackend() as encoder if encoder.version_compatible:
            return _VERSION_NOTE
        case OpenVinoBackend():
            return _OPENVINO_NOTE
    return ""


def _encoder(spec: RepositorySpec) -> Fields:
    inputs, outputs = [_image(spec)], [_code(spec), _tensor(LOGITS, "FP32", [spec.bits])]
    parameters = {} if spec.parent_fingerprint is None else {"parent_fingerprint": spec.parent_fingerprint}
    match spec.encoder:
        case PythonBackend(threads, runtime, streams, instances):
            own = {"runtime": runtime, "threads": str(threads), "streams": str(streams)}
            return {
                **_python_model(spec, ENCODER_MODEL, inputs, outputs),
                **_instance("KIND_CPU", instances),
                **_dynamic_batching(spec, delay=spec.queue_delay_microseconds),
                **_parameters(spec, {**own, **parameters}),
            }
        case OpenVinoBackend(threads, streams):
            own = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": str(threads),
                "NUM_STREAMS": str(streams),
                "ENABLE_BATCH_PADDING": "YES",  # it refuses a smaller batch than max_batch_size otherwise
            }
            return {
                **_head(spec, ENCODER_MODEL, inputs, outputs),
                "backend": "openvino",
                "default_model_filename": MODEL_FILE,
                **_instance("KIND_CPU", streams),
                **_dynamic_batching(spec, delay=spec.queue_delay_microseconds),
                **_parameters(spec, {**own, **parameters}),
            }
        case OnnxRuntimeBackend(accelerator):
            return {
                **_head(spec, ENCODER_MODEL, inputs, outputs),
                "platform": "onnxruntime_onnx",
                **_instance("KIND_AUTO" if accelerator is None else "KIND_GPU"),
                **_dynamic_batching(spec),
                **_optimization(accelerator),
                **_warmup(spec, sorted({1, spec.max_batch})),
                **_parameters(spec, parameters),
            }
        case TensorRTBackend() as encoder:
            sizes = sorted({size for plan in encoder.plans for size in (plan.opt_batch, plan.max_batch)})
            preferred = [size for size in sizes if size <= spec.max_batch] or [spec.max_batch]
            if encoder.version_compatible:
                parameters[VERSION_COMPATIBLE] = "true"  # the launcher reads this
            return {
                **_head(spec, ENCODER_MODEL, inputs, outputs),
                "platform": "tensorrt_plan",
                **_plan_files(encoder),
                **_instance("KIND_GPU"),
                **_dynamic_batching(spec, preferred),
                **_warmup(spec, sorted({1, *preferred})),
                **_parameters(spec, parameters),
            }


def _ensemble(spec: RepositorySpec, name: str, source: Fields, first_steps: Sequence[Fields]) -> Fields:
    asked = [CODE, LOGITS, K, RADIUS, FILTER, RERANK]
    steps = [
        *first_steps,
        {"model_name": ENCODER_MODEL, "model_version": -1, **_maps([IMAGE], [CODE, LOGITS])},
        {"model_name": RANKER_MODEL, "model_version": -1, **_maps(asked, [IDS, DISTANCES, KEYS, GALLERY_VERSION])},
    ]
    return {
        **_head(spec, name, [source, *_asked()], [_code(spec), *_results()]),
        "platform": "ensemble",
        "ensemble_scheduling": {"step": steps},
        **_parameters(spec, {}),
    }


def _python_model(spec: RepositorySpec, name: str, inputs: list[Fields], outputs: list[Fields]) -> Fields:
    return {
        **_head(spec, name, inputs, outputs),
        "backend": "python",
        **_instance("KIND_CPU"),
        **_dynamic_batching(spec),
    }


def _head(spec: RepositorySpec, name: str, inputs: list[Fields], outputs: list[Fields]) -> Fields:
    return {"name": name, "max_batch_size": spec.max_batch, "input": inputs, "output": outputs}


def _instance(kind: str, count: int = 1) -> Fields:
    return {"instance_group": [{"count": count, "kind": kind}]}


def _dynamic_batching(spec: RepositorySpec, preferred: Sequence[int] = (), *, delay: int = 0) -> Fields:
    """Batch what waits while a call runs; only a ``delay`` in microseconds makes a lone request wait."""
    policy: Fields = {}
    if spec.max_queue is not None:
        policy["max_queue_size"] = spec.max_queue
    if spec.max_wait_seconds is not None:
        policy |= {"default_timeout_microseconds": spec.max_wait_seconds * 1_000_000, "allow_timeout_override": True}
    fields: Fields = {"preferred_batch_size": list(preferred)}
    if policy:
        fields["default_queue_policy"] = policy
    if delay:
        fields["max_queue_delay_microseconds"] = delay
    return {"dynamic_batching": fields}


def _plan_files(encoder: TensorRTBackend) -> Fields:
    fields: Fields = {"default_model_filename": encoder.file_of(encoder.plans[0])}
    if len(encoder.plans) > 1:
        fields["cc_model_filenames"] = {
            capability: encoder.file_of(plan) for plan in encoder.plans for capability in plan.capabilities
        }
    return fields


def _optimization(accelerator: TensorRTAccelerator | None) -> Fields:
    if accelerator is None:
        return {}
    parameters = {"precision_mode": "FP32", "max_workspace_size_bytes": str(accelerator.workspace_mib << 20)}
    if accelerator.cache is not None:
        parameters |= {"trt_engine_cache_enable": "true", "trt_engine_cache_path": accelerator.cache}
    gpu = [{"name": "tensorrt", "parameters": parameters}]
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": gpu}}}


def _warmup(spec: RepositorySpec, batch_sizes: Sequence[int]) -> Fields:
    """Run every batch size that matters once before the model is ready: the first call of a shape is slow."""
    image = {"data_type": "TYPE_UINT8", "dims": [spec.image_size, spec.image_size, 3], "random_data": True}
    return {
        "model_warmup": [
            {"name": f"batch of {batch}", "batch_size": batch, "inputs": {IMAGE: image}} for batch in batch_sizes
        ]
    }


def _image(spec: RepositorySpec) -> Fields:
    return _tensor(IMAGE, "UINT8", [spec.image_size, spec.image_size, 3])


def _code(spec: RepositorySpec) -> Fields:
    return _tensor(CODE, "UINT8", [bytes_per_code(spec.bits)])


def _results() -> list[Fields]:
    return [
        _tensor(IDS, "INT64", [-1]),
        _tensor(DISTANCES, "INT32", [-1]),
        _tensor(KEYS, "STRING", [-1]),
        _tensor(GALLERY_VERSION, "STRING", [1]),
    ]


def _asked(**of_filter: bool) -> list[Fields]:
    """Return the optional inputs by which a client refines its search; ``of_filter`` are options of the filter."""
    return [
        _tensor(K, "INT64", [1], optional=True),
        _tensor(RADIUS, "INT64", [1], optional=True),
        _tensor(FILTER, "INT64", [-1], optional=True, **of_filter),
        _tensor(RERANK, "STRING", [1], optional=True),
    ]


def _tensor(name: str, dtype: str, dims: Sequence[int], **options: bool) -> Fields:
    return {"name": name, "data_type": f"TYPE_{dtype}", "dims": list(dims), **options}


def _maps(inputs: Sequence[str], outputs: Sequence[str]) -> Fields:
    """Return the maps of an ensemble's step, in which every tensor keeps its name."""
    return {"input_map": {name: name for name in inputs}, "output_map": {name: name for name in outputs}}


def _parameters(spec: RepositorySpec, own: Mapping[str, str]) -> Fields:
    every = {"bits": str(spec.bits), "fingerprint": spec.fingerprint, **own}
    return {"parameters": {name: {"string_value": value} for name, value in every.items()}}
