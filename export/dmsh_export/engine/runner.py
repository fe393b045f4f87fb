"""A TensorRT plan as a runner: TensorRT and TensorRT-RTX through their one API, buffers held by PyTorch.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

import hashlib
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from dmsh_export.engine.manifest import PlanManifest, read_plan_manifest
from dmsh_export.engine.tensorrt_api import find_gpu, import_flavour, problem_logger
from dmsh_serving.checks import check_images, check_plan_code_is_trusted
from dmsh_serving.codes import Encoded, bytes_per_code
from dmsh_serving.contract import CODE, IMAGE, LOGITS
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.images.framing import Framing

if TYPE_CHECKING:
    import tensorrt

__all__ = ["Engine", "Images", "TensorRTRunner", "batches_of"]

Images = npt.NDArray[np.uint8]


class Engine(Protocol):
    """A loaded plan: one batch in, codes and logits out."""

    def run(self, images: Images) -> Encoded:
        """Encode a batch within the plan's profile."""
        ...

    def close(self) -> None:
        """Free the GPU's memory."""
        ...


class TensorRTRunner:
    """A plan on this machine's first GPU, loaded in ``__enter__``: ``with TensorRTRunner(path) as runner: ...``.

    Raises:
        InputError: no plan, or its manifest is missing or belongs to another file; or it carries code, was not
            ``built_here``, by this process, and the environment does not trust it.
        MissingError: no GPU, no TensorRT package, or another GPU or version than the plan was built for.
    """

    framing: Framing | None = None  # no manifest of a plan says how pictures become its images
    is_exact = False  # it is compared with what is

    def __init__(self, path: Path, *, built_here: bool = False) -> None:
        self.name = path.name
        self._path, self._built_here = path, built_here

    def __enter__(self) -> Self:
        self._manifest = read_plan_manifest(self._path)
        if self._manifest.version_compatible and not self._built_here:
            check_plan_code_is_trusted(str(self._path))
        self.sha256 = self._manifest.sha256
        self.bits = self._manifest.bits
        self.image_size = self._manifest.image_size
        self.fingerprint = self._manifest.fingerprint
        self.parent_fingerprint = self._manifest.parent_fingerprint
        self._engine: Engine = load_engine(self._manifest)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    def infer(self, images: Images) -> Encoded:
        """Encode images (N, H, W, 3) uint8 in batches that the plan's profile allows; N may be 0.

        Raises:
            InputError: another shape or dtype, or a number of images that the profile does not allow.
        """
        check_images(images, self.image_size, self.name)
        manifest = self._manifest
        batches = batches_of(len(images), manifest.min_batch, manifest.max_batch, self.name)
        parts = [self._engine.run(images[rows]) for rows in batches]
        if not parts:
            return Encoded(np.zeros((0, bytes_per_code(self.bits)), np.uint8), np.zeros((0, self.bits), np.float32))
        return Encoded(np.concatenate([part.code for part in parts]), np.concatenate([part.logits for part in parts]))


def batches_of(count: int, smallest: int, largest: int, name: str) -> list[slice]:
    """Return the rows of the fewest batches of ``smallest`` to ``largest`` images that hold ``count`` images.

    Batches are full from the front; only if the last would be too small, earlier ones leave it some of their images.

    Raises:
        InputError: there is no such division; the message names the plan ``name``.
    """
    number = -(-count // largest)
    if number * smallest > count:
        raise InputError(
            f"{name}: {count} images do not divide into batches of {smallest} to {largest}: build it with --min-batch 1"
        )
    rows, start = [], 0
    for left in range(number - 1, -1, -1):
        stop = min(start + largest, count - left * smallest)
        rows.append(slice(start, stop))
        start = stop
    return rows


def load_engine(manifest: PlanManifest) -> Engine:
    """Load a plan onto the GPU.

    Raises:
        MissingError: this machine cannot run it; says which GPU it was built for, which is here, and how to rebuild.
        InputError: it is damaged, was replaced meanwhile, or its tensors are not those of an encoder.
    """
    gpu = find_gpu()
    if gpu is None:
        manifest.check_runs_on(None, manifest.version)
    trt = import_flavour(manifest.flavour)
    manifest.check_runs_on(gpu, trt.__version__)
    import torch

    if not torch.cuda.is_available():
        raise MissingError(
            f"{manifest.path} needs a PyTorch that finds the GPU for its buffers, {torch.__version__} does not"
        )
    return _GpuEngine(trt, manifest)


class _GpuEngine:
    """One engine, one context, its stream, and buffers for the largest batch."""

    def __init__(self, trt: ModuleType, manifest: PlanManifest) -> None:
        import torch

        self._problems: list[str] = []
        self._logger = problem_logger(trt, self._problems)
        runtime: tensorrt.Runtime = trt.Runtime(self._logger)
        if manifest.version_compatible:
            runtime.engine_host_code_allowed = True  # the plan brings its own runtime
        self._runtime = runtime  # must outlive the engine
        plan = manifest.path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != manifest.sha256:
            raise InputError(f"{manifest.path} was replaced while it was opened: try again")
        engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise MissingError(
                f"{manifest.flavour} {trt.__version__} cannot load {manifest.path} ({self._reason()}), built for "
                f"{manifest.targets.text} with {manifest.version}: {manifest.how_to_rebuild}"
            )
        _check_tensors(trt, engine, manifest)
        self._engine: tensorrt.ICudaEngine | None = engine
        self._name = manifest.path.name
        context: tensorrt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise MissingError(f"{manifest.path} cannot start on this GPU, is its memory full? ({self._reason()})")
        rows, size = manifest.max_batch, manifest.image_size
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._buffers = {
            IMAGE: torch.empty((rows, size, size, 3), dtype=torch.uint8, device="cuda"),
            CODE: torch.empty((rows, bytes_per_code(manifest.bits)), dtype=torch.uint8, device="cuda"),
            LOGITS: torch.empty((rows, manifest.bits), dtype=torch.float32, device="cuda"),
        }
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.data_ptr())
        self._context: tensorrt.IExecutionContext | None = context

    def run(self, images: Images) -> Encoded:
        import torch

        if self._context is None:
            raise InputError(f"{self._name} is closed: open it again")
        count = len(images)
        with torch.cuda.stream(self._stream):
            self._buffers[IMAGE][:count].copy_(torch.from_numpy(np.ascontiguousarray(images)))
            self._execute(self._context, count)
            code, logits = (self._buffers[name][:count].cpu() for name in (CODE, LOGITS))
        return Encoded(code.numpy(), logits.numpy())

    def close(self) -> None:
        self._context = self._engine = None
        self._buffers.clear()

    def _execute(self, context: "tensorrt.IExecutionContext", count: int) -> None:
        import torch

        context.set_input_shape(IMAGE, (count, *self._buffers[IMAGE].shape[1:]))
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise MissingError(f"{self._name} failed on the GPU with {count} images: {self._reason()}")

    def _reason(self) -> str:
        return self._problems[-1] if self._problems else "no reason is given"


def _check_tensors(trt: ModuleType, engine: "tensorrt.ICudaEngine", manifest: PlanManifest) -> None:
    size = manifest.image_size
    expected = {
        IMAGE: (trt.DataType.UINT8, (size, size, 3)),
        CODE: (trt.DataType.UINT8, (bytes_per_code(manifest.bits),)),
        LOGITS: (trt.DataType.FLOAT, (manifest.bits,)),
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:]) for name in names}
    if found != expected:
        raise InputError(
            f"{manifest.path}: expected the tensors {_text(expected)}, found {_text(found)}: {manifest.how_to_rebuild}"
        )


def _text(tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in sorted(tensors.items()))
