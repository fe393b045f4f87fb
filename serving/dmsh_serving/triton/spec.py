"""What a Triton model repository is generated from: the code space, the limits, and the kind of encoder."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.codes import checked_bits
from dmsh_serving.contract import DEFAULT_MAX_BATCH, PLAN_FILE
from dmsh_serving.encoder.base import RUNTIMES, Runtime
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing

__all__ = [
    "EncoderBackend",
    "OnnxRuntimeBackend",
    "OpenVinoBackend",
    "Plan",
    "PythonBackend",
    "RepositorySpec",
    "TensorRTAccelerator",
    "TensorRTBackend",
]

_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_HEX = set("0123456789abcdef")


@dataclass(frozen=True)
class PythonBackend:
    """ONNX Runtime or OpenVINO inside Triton's Python backend, on the CPU: checks its known answer.

    Attributes:
        threads: threads of one call.
        runtime: what computes; OpenVINO needs a model in the openvino dialect, or a float one.
        streams: with OpenVINO, parts of a batch that are computed side by side.
        instances: processes that each serve calls.
    """

    threads: int = 2
    runtime: Runtime = "onnxruntime"
    streams: int = 1
    instances: int = 1

    def __post_init__(self) -> None:
        """Refuse streams that ONNX Runtime has not."""
        if self.runtime not in RUNTIMES:
            raise InputError(f"no runtime {self.runtime!r}, there are {', '.join(RUNTIMES)}")
        if self.runtime == "onnxruntime" and self.streams != 1:
            raise InputError("ONNX Runtime has no streams: leave them out, or serve with OpenVINO")


@dataclass(frozen=True)
class TensorRTAccelerator:
    """ONNX Runtime's TensorRT provider inside Triton's ONNX Runtime backend, for FP32 models.

    In FP16 and INT8 it would choose the type of every layer by itself, those of the head included.

    Attributes:
        workspace_mib: most device memory one layer may use while it runs.
        cache: folder on the server for the engines it builds; None builds them at every start.

    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/onnxruntime_backend/README.html
    """

    workspace_mib: int = 1024
    cache: str | None = None


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """Triton's own ONNX Runtime backend (in NVIDIA's container), on a GPU if there is one.

    It has no known-answer check and no ``session.x64quantprecision``: on CPUs without VNNI serve integer models
    with :class:`PythonBackend`.
    """

    accelerator: TensorRTAccelerator | None = None


@dataclass(frozen=True)
class OpenVinoBackend:
    """Triton's own OpenVINO backend (in NVIDIA's container), on the CPU.

    It checks no known answer, pads every call to the largest batch, and cannot be told to keep FP32: on a CPU with bf16
    the head of an integer network would be wrong there.

    Attributes:
        threads: threads of one call.
        streams: calls that run side by side; there are as many instances.

    https://github.com/triton-inference-server/openvino_backend
    """

    threads: int = 2
    streams: int = 1


@dataclass(frozen=True)
class Plan:
    """One TensorRT engine.

    Attributes:
        path: the file.
        capabilities: compute capabilities of the GPUs it runs on, as "8.6".
        min_batch, opt_batch, max_batch: its optimisation profile.
        version_compatible: it runs on later TensorRT versions, if Triton is told to allow that.
    """

    path: Path
    capabilities: tuple[str, ...]
    min_batch: int
    opt_batch: int
    max_batch: int
    version_compatible: bool = False

    def __post_init__(self) -> None:
        """Refuse what Triton could not choose or call."""
        wrong = [capability for capability in self.capabilities if not _CAPABILITY.fullmatch(capability)]
        if wrong or not self.capabilities:
            raise InputError(f"{self.path}: compute capabilities are written as 8.6, got {', '.join(wrong) or 'none'}")
        if not 1 == self.min_batch <= self.opt_batch <= self.max_batch:
            raise InputError(
                f"{self.path}: its profile is for batches of {self.min_batch} to {self.max_batch} (best at "
                f"{self.opt_batch}); a server gets single images too: build it with --min-batch 1"
            )


@dataclass(frozen=True)
class TensorRTBackend:
    """Triton's TensorRT backend with one engine, or one for each of several GPUs: the GPU it starts on decides."""

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        """Refuse two engines for one GPU."""
        if not self.plans:
            raise InputError("a tensorrt encoder needs an engine: name one with --plan")
        owners: dict[str, Path] = {}
        for plan in self.plans:
            for capability in plan.capabilities:
                other = owners.setdefault(capability, plan.path)
                if other != plan.path:
                    raise InputError(f"{other} and {plan.path} are both for compute capability {capability}: name one")

    @property
    def max_batch(self) -> int:
        """The most images that every one of the engines takes."""
        return min(plan.max_batch for plan in self.plans)

    @property
    def version_compatible(self) -> bool:
        """Whether Triton must be told to trust the runtime that one of the engines brings."""
        return any(plan.version_compatible for plan in self.plans)

    def file_of(self, plan: Plan) -> str:
        """Return the name that ``plan`` has in the repository."""
        return PLAN_FILE if len(self.plans) == 1 else f"model-sm{plan.capabilities[0].replace('.', '')}.plan"


EncoderBackend = PythonBackend | OnnxRuntimeBackend | OpenVinoBackend | TensorRTBackend


@dataclass(frozen=True)
class RepositorySpec:
    """What a repository is generated from.

    Attributes:
        gallery: the gallery's folder, or its address in ClickHouse; it need not exist yet.
        bits: K of the codes.
        image_size: H = W of the images.
        fingerprint: the code space's name, 64 hexadecimal digits.
        parent_fingerprint: of a low-precision encoder: the code space it approximates, to be proven against.
        model: the ONNX file to put in; None leaves its place empty (an encoder of plans has none).
        encoder: what computes the codes.
        known_answer: images and their codes, as ``Metadata.KNOWN_ANSWER`` has them, of which the first is the canary
            that a running server is asked for. None if the encoder need not give them to the last bit.
        max_batch: most rows of one call.
        queue_delay_microseconds: how long the encoder's batcher may wait for more images; 0 never waits.
        max_queue: most requests that wait for one model; one more is refused at once (UNAVAILABLE). None: no limit.
        max_wait_seconds: longest that a request waits for one model before it is dropped (UNAVAILABLE); a request
            that carries its own ``timeout`` is dropped after that, if it is shorter. None: no limit.
            Either limit makes Triton 24.10 forget about 1 in 100 lone requests for half a second: its batcher does
            not prefetch from a queue that has one, and can then miss the wake-up. See docs/serving.md.
        framing: how files become images.
    """

    gallery: Path | Address
    bits: int
    image_size: int
    fingerprint: str
    parent_fingerprint: str | None = None
    model: Path | None = None
    encoder: EncoderBackend = PythonBackend()
    known_answer: str | None = None
    max_batch: int = DEFAULT_MAX_BATCH
    queue_delay_microseconds: int = 0
    max_queue: int | None = None
    max_wait_seconds: int | None = None
    framing: Framing = field(default_factory=Framing)

    def __post_init__(self) -> None:
        """Refuse what no server could load."""
        checked_bits(self.bits)
        for fingerprint in (self.fingerprint, self.parent_fingerprint):
            if fingerprint is not None and (len(fingerprint) != 64 or set(fingerprint) - _HEX):
                raise InputError(f"a fingerprint is 64 hexadecimal digits, got {fingerprint!r}")
        counts = {name: getattr(self, name) for name in ("image_size", "max_batch", "max_queue", "max_wait_seconds")}
        match self.encoder:
            case PythonBackend(threads, _, streams, instances):
                counts |= {"encoder threads": threads, "encoder streams": streams, "encoder instances": instances}
            case OpenVinoBackend(threads, streams):
                counts |= {"encoder threads": threads, "encoder streams": streams}
            case OnnxRuntimeBackend(TensorRTAccelerator(workspace_mib=mib)):
                counts["workspace_mib"] = mib
            case TensorRTBackend():
                self._check_plans(self.encoder)
        for name, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.queue_delay_microseconds < 0:
            raise InputError(f"queue_delay_microseconds must be at least 0, got {self.queue_delay_microseconds}")
        if self.model is not None and not self.model.is_file():
            raise InputError(f"{self.model} is not a file: name an ONNX model made by dmsh-export onnx")

    def _check_plans(self, encoder: TensorRTBackend) -> None:
        if self.model is not None:
            raise InputError(f"{self.model}: a tensorrt encoder serves plans, not an ONNX file")
        for plan in encoder.plans:
            if not plan.path.is_file():
                raise InputError(f"{plan.path} is not a file: name an engine made by dmsh-export trt")
            if self.max_batch > plan.max_batch:
                raise InputError(
                    f"max_batch = {self.max_batch} is more than {plan.path} takes, {plan.max_batch}: ask for less, or "
                    f"build it with --max-batch {self.max_batch}"
                )
