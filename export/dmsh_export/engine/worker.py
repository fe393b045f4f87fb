"""One TensorRT build in a process of its own: ``python -m dmsh_export.engine.worker``, started by ``process.py``.

The process is fresh because several builds in one process give different bytes, and because a native crash must not
end the command. It works in the current folder: it reads :data:`REQUEST` and :data:`MODEL`, and writes :data:`PLAN` and
:data:`TIMING_CACHE`. On stdout it writes JSON lines: ``{"phase": [name, done, total]}`` while it works, and
``{"result": ...}`` or ``{"error": [kind, message]}`` at the end.

The builder orders some tensors by the addresses of their objects. So address randomisation is switched off if the
system allows it, and no path that the user gave is read here: one input, one sequence of allocations, the same bytes.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dmsh_export.engine.audit import LayerRecord, check_precision, records_from_inspector, records_of_network
from dmsh_export.engine.exchange import BuildRequest, BuildResult
from dmsh_export.engine.tensorrt_api import import_flavour, problem_logger
from dmsh_serving.contract import IMAGE
from dmsh_serving.errors import CheckError, DmshError, InputError

if TYPE_CHECKING:
    import tensorrt

__all__ = ["MODEL", "PLAN", "REQUEST", "TIMING_CACHE"]


REQUEST, MODEL, PLAN, TIMING_CACHE = Path("request.json"), Path("typed.onnx"), Path("engine.plan"), Path("timing.cache")
_ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)


class _Channel:
    """JSON lines on the real stdout; native code that prints there writes to stderr instead."""

    def __init__(self) -> None:
        self._lines = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def send(self, message: dict[str, Any]) -> None:
        self._lines.write(json.dumps(message) + "\n")


def build(request: BuildRequest, channel: _Channel) -> BuildResult:
    """Parse, audit, build and write the plan of ``request``; return what the manifest records.

    Messages do not name the model, which the caller knows.

    Raises:
        InputError: TensorRT cannot parse the model.
        CheckError: the audit failed, or TensorRT could not build.
    """
    trt = import_flavour(request.flavour)
    problems: list[str] = []
    logger = problem_logger(trt, problems)
    builder: tensorrt.Builder = trt.Builder(logger)
    network: tensorrt.INetworkDefinition = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    _parse(trt, network, logger)
    records = tuple(records_of_network(trt, network, request.parts))
    check_precision(records, request.precision, "parsed network")
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    _configure(trt, builder, config, request)
    monitor = _monitor(trt, channel)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = next((problem for problem in reversed(problems) if "cudaError" not in problem), "no reason is given")
        raise CheckError(f"TensorRT cannot build it: {reason}")
    PLAN.write_bytes(plan)
    if request.timing_cache:
        cache: tensorrt.ITimingCache = config.get_timing_cache()
        TIMING_CACHE.write_bytes(cache.serialize())
    inspected: tuple[LayerRecord, ...] = ()
    if request.inspect:
        inspected = tuple(records_from_inspector(_inspection(trt, logger, request), records, request.parts))
        check_precision(inspected, request.precision, "engine inspector")
    return BuildResult(trt.__version__, _addresses_are_fixed(), records, inspected)


def _parse(trt: ModuleType, network: "tensorrt.INetworkDefinition", logger: "tensorrt.ILogger") -> None:
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if parser.parse(MODEL.read_bytes()):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        raise InputError("TensorRT cannot parse it")
    error: tensorrt.ParserError = errors[0]
    reason = error.desc().splitlines()[0]  # may be no more than the condition that failed, "false"
    raise InputError(
        f"TensorRT does not support the operator {error.node_operator()} (node {error.node_name()}): {reason}"
    )


def _configure(
    trt: ModuleType, builder: "tensorrt.Builder", config: "tensorrt.IBuilderConfig", request: BuildRequest
) -> None:
    # TF32 rounds the inputs of FP32 products to 10 bits of mantissa: no parity with FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib * 2**20)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatibility == "ampere-plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif request.hardware_compatibility == "same-compute-capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if request.timing_cache:
        cache: tensorrt.ITimingCache = config.create_timing_cache(
            TIMING_CACHE.read_bytes() if TIMING_CACHE.is_file() else b""
        )
        if not config.set_timing_cache(cache, False):
            raise InputError("the timing cache is of another GPU or TensorRT version: delete it, or name another")
    profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
    size = request.image_size
    smallest, best, largest = ((batch, size, size, 3) for batch in request.profile)
    profile.set_shape(IMAGE, smallest, best, largest)
    config.add_optimization_profile(profile)


def _inspection(trt: ModuleType, logger: "tensorrt.ILogger", request: BuildRequest) -> str:
    """Load the plan and return the engine inspector's JSON for batches of the best size."""
    runtime: tensorrt.Runtime = trt.Runtime(logger)
    engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(PLAN.read_bytes())
    if engine is None:
        raise CheckError("TensorRT cannot load the plan it has just built")
    inspector: tensorrt.EngineInspector = engine.create_engine_inspector()
    context: tensorrt.IExecutionContext | None = engine.create_execution_context()
    if context is not None:  # without a shape, the inspector knows no layer's type
        size = request.image_size
        context.set_input_shape(IMAGE, (request.profile[1], size, size, 3))
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _monitor(trt: ModuleType, channel: _Channel) -> Any:
    """Return a progress monitor that reports each step of each phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            channel.send({"phase": [phase, 0, steps]})

        def step_complete(self, phase: str, step: int) -> bool:
            channel.send({"phase": [phase, step + 1, self.totals[phase]]})
            return True

        def phase_finish(self, phase: str) -> None:
            channel.send({"phase": [phase, self.totals[phase], self.totals[phase]]})

    return Monitor()


def _fix_addresses() -> None:
    """Start this process anew without address randomisation; if that is not allowed, go on as it is."""
    if _addresses_are_fixed():
        return
    libc = ctypes.CDLL(None)
    libc.personality(libc.personality(0xFFFFFFFF) | _ADDR_NO_RANDOMIZE)
    if _addresses_are_fixed():
        os.execv(sys.executable, sys.orig_argv)


def _addresses_are_fixed() -> bool:
    persona = int(ctypes.CDLL(None).personality(0xFFFFFFFF))  # this value asks, and changes nothing
    return persona != -1 and bool(persona & _ADDR_NO_RANDOMIZE)


def main() -> None:
    """Serve one request."""
    _fix_addresses()
    channel = _Channel()
    try:
        channel.send({"result": build(BuildRequest.from_json(REQUEST.read_text()), channel).to_fields()})
    except DmshError as error:
        channel.send({"error": [type(error).__name__, str(error)]})


if __name__ == "__main__":
    main()
