"""The static certificate of an integer ONNX model: which integer network it is, what its sums can reach, and where."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dmsh_export.graph import Dialect, metadata_of, model_from_file
from dmsh_export.prove.integer_from_onnx import ReadBack, integer_from_onnx
from dmsh_model.integer.layers import HIGHEST, Add, Convolution, GlobalSum, Layer, Linear, Logits
from dmsh_model.integer.network import FLOAT32_LIMIT, INT32_LIMIT, IntegerNetwork, canonical_hash
from dmsh_model.integer.reference import code_space
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, DmshError, InputError
from dmsh_serving.files import sha256_of_file

FORMAT = "dmsh-certificate"
FORMAT_VERSION = 1
# Two neighbouring products of a uint8 and a weight within this fit int16, in which some CPUs' kernels add them.
SATURATION_FREE_WEIGHT = 64


@dataclass(frozen=True)
class LayerBound:
    """The worst case of one layer with an accumulator, over all images there can be.

    ``lowest`` and ``highest`` bound the accumulator with its bias, ``peak`` every partial sum in any order too;
    ``shifts`` is (least, greatest), of the logits their exponents; ``low`` and ``high`` bound the layer's output.
    """

    node: str
    kind: str
    lowest: int
    highest: int
    peak: int
    shifts: tuple[int, int]
    low: int
    high: int

    @property
    def below_float32(self) -> bool:
        """Whether every partial sum is below 2^24, so that float32 accumulation is exact too."""
        return self.peak < FLOAT32_LIMIT


@dataclass(frozen=True)
class Condition:
    """What a runtime must do, beyond the graph, for its result to be the integers; ``why`` in this model."""

    runtime: str
    needs: str
    why: str


@dataclass(frozen=True)
class Certificate:
    """The proof of one model. There is none of a model that fails: :func:`certify` raises instead.

    ``network_hash`` is the canonical hash of the network that was read back; ``checkpoint`` the fingerprint of the
    integer checkpoint it was held against (None: against the fingerprint in its own metadata alone).
    """

    model: str
    sha256: str
    dialect: Dialect
    fingerprint: str
    network_hash: str
    checkpoint: str | None
    bounds: tuple[LayerBound, ...]
    conditions: tuple[Condition, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        for bound, entry in zip(self.bounds, fields["bounds"], strict=True):
            entry["below_2_31"], entry["below_2_24"] = bound.peak < INT32_LIMIT, bound.below_float32
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "proven": True, **fields}


def certify(path: Path, against: IntegerNetwork | None = None) -> Certificate:
    """Prove that the ONNX file ``path`` is an integer network, and the very one that its fingerprint names.

    ``against`` is the checkpoint's network: it must be the same, and where it is not the first differing node is named.

    Raises:
        InputError: not a model of dmsh-export, or a float one.
        CheckError: the proof fails; names the node.
    """
    model = model_from_file(path)
    try:
        return _certificate(path, model, against)
    except DmshError as error:
        raise type(error)(f"{path}: {error}") from error


def _certificate(path: Path, model: onnx.ModelProto, against: IntegerNetwork | None) -> Certificate:
    read = integer_from_onnx(model)
    bounds = tuple(bounds_of(read.network))
    _check_dialect(read, bounds)
    found = canonical_hash(read.network)
    if against is not None and found != canonical_hash(against):
        raise CheckError(f"it is not the checkpoint's network: {_difference(read.network, against)}")
    stated = metadata_of(model).get(Metadata.FINGERPRINT)
    if stated is None:
        raise InputError(f"it has no {Metadata.FINGERPRINT} in its metadata: export it with dmsh-export onnx")
    space = code_space(read.network)
    if stated != space:
        raise CheckError(
            f"its integers are of the code space {space[:12]}, its metadata says {stated[:12]}: it was changed after "
            "its export; give --against the integer checkpoint to see where"
        )
    return Certificate(
        model=path.name,
        sha256=sha256_of_file(path),
        dialect=read.dialect,
        fingerprint=stated,
        network_hash=found,
        checkpoint=code_space(against) if against is not None else None,
        bounds=bounds,
        conditions=tuple(_conditions(read, bounds)),
    )


def bounds_of(network: IntegerNetwork) -> list[LayerBound]:
    """Return the bound of each layer of ``network`` that has an accumulator."""
    bounds = []
    for index, layer in enumerate(network.layers):
        accumulator = network.accumulator(index)
        if accumulator is None:
            continue
        shifts = _shifts(layer)
        low, high = network.ranges[index]
        lowest, highest = int(accumulator.lowest.min()), int(accumulator.highest.max())
        kind = type(layer).__name__
        bounds.append(LayerBound(layer.name, kind, lowest, highest, accumulator.peak, shifts, low, high))
    return bounds


def _shifts(layer: Layer) -> tuple[int, int]:
    match layer:
        case Convolution() | Linear():
            return int(layer.shift.min()), int(layer.shift.max())
        case Logits():
            return int(layer.exponent.min()), int(layer.exponent.max())
        case GlobalSum() | Add():
            return layer.shift, layer.shift
        case _:
            raise TypeError(f"{type(layer).__name__} has no shift")


def _difference(found: IntegerNetwork, expected: IntegerNetwork) -> str:
    """Name the first node at which two networks differ."""
    for ours, theirs in zip(found.layers, expected.layers, strict=False):
        if type(ours) is not type(theirs):
            return f"node {ours.name} is a {type(ours).__name__}, the checkpoint has a {type(theirs).__name__} there"
        for field in dataclasses.fields(ours):
            value, wanted = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name == "name" or np.array_equal(value, wanted):
                continue
            if isinstance(value, np.ndarray) and value.shape == wanted.shape:
                return f"node {ours.name}: {int((value != wanted).sum())} of {value.size} values of its {field.name}"
            shown = value.shape if isinstance(value, np.ndarray) else value
            held = wanted.shape if isinstance(wanted, np.ndarray) else wanted
            return f"node {ours.name}: its {field.name} is {shown}, the checkpoint's {held}"
    return f"it has {len(found.layers)} layers, the checkpoint {len(expected.layers)}"


def _check_dialect(read: ReadBack, bounds: tuple[LayerBound, ...]) -> None:
    """Refuse what the network allows and float32, where the dialect computes in it, does not."""
    of = {bound.node: bound for bound in bounds}
    for layer, shape in zip(read.network.layers, read.network.shapes, strict=True):
        if layer.name not in of or isinstance(layer, Convolution):
            continue
        reached = of[layer.name].peak
        if isinstance(layer, Add) and len(shape) == 3 and read.dialect == "onnxruntime":
            # Fused, it adds uint8 values and zero points times their scales: what that reaches, in the sum's units.
            greater = max(layer.left_shift, layer.right_shift)
            reached = (128 << layer.shift) + 383 * ((1 << greater) + 1)
        if reached >= FLOAT32_LIMIT:
            raise CheckError(f"node {layer.name}: its sums reach {reached} in float32, exact below 2^24 only")
    if read.dialect == "tensorrt":
        for layer in read.network.layers:
            if isinstance(layer, Convolution):
                _check_float_bias(layer, of[layer.name])


def _check_float_bias(layer: Convolution, bound: LayerBound) -> None:
    """Refuse a float bias whose sum with an exact int32 accumulator float32 could round to another output."""
    unclipped = (HIGHEST + 2) << int(layer.shift.max())
    if not bound.below_float32 and int(np.abs(layer.bias.astype(np.int64)).max()) + unclipped >= FLOAT32_LIMIT:
        raise CheckError(f"node {layer.name}: its bias is too large to be added in float32 to sums of {bound.peak}")


def _conditions(read: ReadBack, bounds: tuple[LayerBound, ...]) -> list[Condition]:
    large = [bound.node for bound in bounds if not bound.below_float32]
    beyond = f"{len(large)} of {len(bounds)} layers can reach 2^24 or more, {large[0]} first" if large else ""
    within = "every partial sum is below 2^24"
    if read.dialect == "tensorrt":
        int8 = "INT8 kernels with int32 accumulators"
        kernels = f"{int8} (as Q/DQ asks for)" if large else f"{int8}, or FP32 ones that are not Winograd or FFT"
        return [
            Condition("TensorRT", kernels, beyond or within),
            Condition("TensorRT", "TF32 off (dmsh-export trt builds so)", "the head holds integers of up to 24 bits"),
            Condition(
                "ONNX Runtime",
                "for checks only; as below where it fuses, and FP32 kernels that are not Winograd or FFT",
                beyond or within,
            ),
            _precision_condition(read.network),
        ]
    return [
        Condition("ONNX Runtime", "int32 accumulators (QLinearConv has them)", beyond or within),
        _precision_condition(read.network),
        Condition("ONNX Runtime, CPU", "FP32 accumulation in the head", "its sums are below 2^24"),
        Condition("ONNX Runtime, GPU", "TF32 off in the head", "it holds integers of up to 24 bits"),
    ]


def _precision_condition(network: IntegerNetwork) -> Condition:
    convolutions = [layer for layer in network.layers if isinstance(layer, Convolution)]
    peak = max((int(np.abs(layer.weight.astype(np.int64)).max()) for layer in convolutions), default=0)
    runtime = "ONNX Runtime, x86 without VNNI"
    if peak <= SATURATION_FREE_WEIGHT:
        return Condition(runtime, "nothing", f"no weight is beyond {SATURATION_FREE_WEIGHT}: two products fit int16")
    return Condition(
        runtime,
        "session.x64quantprecision=1 with graph optimisation at extended or all",
        f"weights reach {peak}: kernels that add two products in int16 saturate",
    )
