"""What a runtime must do beyond an ONNX graph, so that its results are the integers of the network."""

from dataclasses import dataclass

import numpy as np

from dmsh_export.prove.bound_rows import LayerBound
from dmsh_export.prove.integer_from_onnx import ReadBack
from dmsh_model.integer.layers import Add, Convolution, Layer
from dmsh_model.integer.network import IntegerNetwork

__all__ = ["RuntimeNeed", "runtime_needs"]

# CPUs without VNNI add two products of a uint8 and a weight in int16, which cannot saturate up to this weight.
SATURATION_FREE_WEIGHT = int(np.iinfo(np.int16).max) // (2 * int(np.iinfo(np.uint8).max))


@dataclass(frozen=True)
class RuntimeNeed:
    """What a runtime must do beyond the graph, so that its results are the integers; ``why`` is for this model."""

    runtime: str
    needs: str
    why: str


def runtime_needs(read: ReadBack, bounds: tuple[LayerBound, ...]) -> list[RuntimeNeed]:
    """Return what each runtime must do, so that it computes the integers of the network that was read."""
    within = "every partial sum is below 2^24"
    if read.dialect == "openvino":
        return _openvino_needs(read, within)
    if read.dialect == "tensorrt":
        kernels = "INT8 kernels with int32 accumulators, or FP32 ones that are not Winograd or FFT"
        return [
            RuntimeNeed("TensorRT", kernels, within),
            RuntimeNeed("TensorRT", "TF32 off (dmsh-export trt builds so)", "the head holds integers of up to 24 bits"),
            *_fusion_needs(read.network),
            RuntimeNeed(
                "ONNX Runtime",
                "for checks only; as below where it fuses, and FP32 kernels that are not Winograd or FFT",
                within,
            ),
            _precision_need(read.network),
        ]
    large = [bound.node for bound in bounds if not bound.below_float32]
    beyond = f"{len(large)} of {len(bounds)} layers can reach 2^24 or more, {large[0]} first" if large else ""
    return [
        RuntimeNeed("ONNX Runtime", "int32 accumulators (QLinearConv has them)", beyond or within),
        _precision_need(read.network),
        RuntimeNeed("ONNX Runtime, CPU", "FP32 accumulation in the head", "its sums are below 2^24"),
        RuntimeNeed("ONNX Runtime, GPU", "TF32 off in the head", "it holds integers of up to 24 bits"),
    ]


def _fusion_needs(network: IntegerNetwork) -> list[RuntimeNeed]:
    """Say what a runtime that fuses a convolution with an addition must keep; nothing without additions."""
    additions = [layer for layer, shape in zip(network.layers, network.shapes, strict=True) if _adds_maps(layer, shape)]
    if not additions:
        return []
    keeps = "a fusion of Conv and Add keeps the rounding between them (parity shows it)"
    return [RuntimeNeed("TensorRT", keeps, f"{len(additions)} additions of feature maps, {additions[0].name} first")]


def _adds_maps(layer: Layer, shape: tuple[int, ...]) -> bool:
    return isinstance(layer, Add) and len(shape) == 3


def _openvino_needs(read: ReadBack, why: str) -> list[RuntimeNeed]:
    rounds = f"{len(read.rounded)} convolutions that feed an addition are rounded by a node of their own"
    return [
        RuntimeNeed("OpenVINO, CPU", "VNNI or AMX: INT8 kernels with int32 accumulators", why),
        RuntimeNeed("OpenVINO, CPU", "INFERENCE_PRECISION_HINT=f32", "the head holds integers of up to 24 bits"),
        RuntimeNeed("OpenVINO, CPU", "no fusion drops a Round", rounds),
        RuntimeNeed("ONNX Runtime", "for checks only, as the tensorrt dialect", why),
        _precision_need(read.network),
    ]


def _precision_need(network: IntegerNetwork) -> RuntimeNeed:
    convolutions = [layer for layer in network.layers if isinstance(layer, Convolution)]
    peak = max((int(np.abs(layer.weight.astype(np.int64)).max()) for layer in convolutions), default=0)
    runtime = "ONNX Runtime, x86 without VNNI"
    if peak <= SATURATION_FREE_WEIGHT:
        return RuntimeNeed(runtime, "nothing", f"no weight is beyond {SATURATION_FREE_WEIGHT}: two products fit int16")
    return RuntimeNeed(
        runtime,
        "session.x64quantprecision=1 with graph optimisation at extended or all",
        f"weights reach {peak}: kernels that add two products in int16 saturate",
    )
