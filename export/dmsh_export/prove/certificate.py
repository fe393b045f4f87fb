"""The static certificate of an integer ONNX model: which network it is, and the largest sum of each layer."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dmsh_export.graph import Dialect, bytes_of_model, metadata_of, model_from_bytes
from dmsh_export.prove.bound_rows import LayerBound, bounds_of
from dmsh_export.prove.integer_from_onnx import ReadBack, integer_from_onnx
from dmsh_export.prove.runtime_needs import RuntimeNeed, runtime_needs
from dmsh_model.fingerprint import integer_fingerprint
from dmsh_model.integer.bounds import FLOAT32_LIMIT, INT32_LIMIT
from dmsh_model.integer.layers import LOWEST, Add, Convolution, Layer, sources
from dmsh_model.integer.network import IntegerNetwork, canonical_hash
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, DmshError, InputError
from dmsh_serving.images.framing import Framing

__all__ = ["Certificate", "certify"]

FORMAT = "dmsh-certificate"
FORMAT_VERSION = 1

_UINT8_MAX = int(np.iinfo(np.uint8).max)
_ZERO_POINT = -LOWEST  # of the onnxruntime dialect: it moves -128..127 to 0..255


@dataclass(frozen=True)
class Certificate:
    """The proof of one model. A model that fails has none: :func:`certify` raises instead.

    Attributes:
        model: name of the file.
        sha256: of the file.
        dialect: the dialect it is written in.
        fingerprint: its code space.
        network_hash: canonical hash of the network that was read back.
        checkpoint: fingerprint of the integer checkpoint that it was compared with; None if it was compared with the
            fingerprint in its own metadata alone.
        bounds: of every layer with an accumulator.
        conditions: for the runtimes.
    """

    model: str
    sha256: str
    dialect: Dialect
    fingerprint: str
    network_hash: str
    checkpoint: str | None
    bounds: tuple[LayerBound, ...]
    conditions: tuple[RuntimeNeed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        for bound, entry in zip(self.bounds, fields["bounds"], strict=True):
            entry["below_2_31"], entry["below_2_24"] = bound.peak < INT32_LIMIT, bound.below_float32
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "proven": True, **fields}


def certify(path: Path, against: IntegerNetwork | None = None) -> Certificate:
    """Prove that the ONNX file ``path`` is an integer network, and the one that its fingerprint names.

    ``against`` is the checkpoint's network, which the file must equal; the error names the first node that differs.

    Raises:
        InputError: not a model of dmsh-export, or a float one.
        CheckError: the proof fails; the message names the node.
    """
    content = bytes_of_model(path)
    model = model_from_bytes(content, path)
    try:
        return _certificate(path.name, hashlib.sha256(content).hexdigest(), model, against)
    except DmshError as error:
        raise type(error)(f"{path}: {error}") from error


def _certificate(name: str, sha256: str, model: onnx.ModelProto, against: IntegerNetwork | None) -> Certificate:
    read = integer_from_onnx(model)
    metadata = metadata_of(model)
    if metadata.get(Metadata.DIALECT) != read.dialect:  # by which a runtime is chosen
        raise CheckError(
            f"it is written in the {read.dialect} dialect, its {Metadata.DIALECT} says "
            f"{metadata.get(Metadata.DIALECT)}: it was changed after its export"
        )
    bounds = tuple(bounds_of(read.network))
    _check_dialect(read)
    found = canonical_hash(read.network)
    if against is not None and found != canonical_hash(against):
        raise CheckError(f"it is not the checkpoint's network: {_difference(read.network, against)}")
    stated = metadata.get(Metadata.FINGERPRINT)
    if stated is None:
        raise InputError(f"it has no {Metadata.FINGERPRINT} in its metadata: export it with dmsh-export onnx")
    framing = Framing.parse(metadata.get(Metadata.FRAMING))
    space = integer_fingerprint(found, framing)
    if stated != space:
        raise CheckError(
            f"its integers are of the code space {space[:12]}, its metadata says {stated[:12]}: it was changed after "
            "its export; give --against the integer checkpoint to see where"
        )
    return Certificate(
        model=name,
        sha256=sha256,
        dialect=read.dialect,
        fingerprint=stated,
        network_hash=found,
        checkpoint=integer_fingerprint(canonical_hash(against), framing) if against is not None else None,
        bounds=bounds,
        conditions=tuple(runtime_needs(read, bounds)),
    )


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


def _check_dialect(read: ReadBack) -> None:
    """Refuse sums that the network allows, but that are not exact where the dialect computes in float32."""
    network = read.network
    for layer, shape, accumulator in zip(network.layers, network.shapes, network.accumulators, strict=True):
        if accumulator is None:
            continue
        reached = accumulator.peak
        if isinstance(layer, Convolution) and read.dialect == "onnxruntime":  # in int32
            continue
        if isinstance(layer, Add) and len(shape) == 3 and read.dialect == "onnxruntime":
            # ONNX Runtime fuses it to QLinearAdd, which adds five terms in float32: the zero point of the result, and
            # per side the uint8 value and its zero point. This is their sum in units of the finer side, any order.
            sides = (1 << layer.left_shift) + (1 << layer.right_shift)
            reached = (_ZERO_POINT << layer.shift) + (_UINT8_MAX + _ZERO_POINT) * sides
        if reached >= FLOAT32_LIMIT:
            raise CheckError(f"node {layer.name}: its sums reach {reached} in float32, exact below 2^24 only")
    if read.dialect == "openvino":
        _check_groups(read)
        _check_strides(read.network)
        _check_rounding(read)


def _check_groups(read: ReadBack) -> None:
    """Refuse a convolution of one channel per group and several outputs of each: OpenVINO's kernels get some wrong.

    Which ones depends on the window, the batch and the number of threads; found with OpenVINO 2026.4.1 on AVX-512.
    """
    for layer in read.network.layers:
        if isinstance(layer, Convolution) and layer.weight.shape[1] == 1 and layer.weight.shape[0] > layer.groups > 1:
            raise CheckError(
                f"node {layer.name}: it makes {layer.weight.shape[0]} channels of {layer.groups} groups of one, which "
                "OpenVINO computes wrongly: export it in the onnxruntime dialect"
            )


def _check_strides(network: IntegerNetwork) -> None:
    """Refuse a map of which every reader steps over most of it: with several streams, OpenVINO gets some wrong.

    It lets the layer before the readers make their stride; found with OpenVINO 2026.4.1 on AVX-512, in some of the
    times that it compiles one file.
    """
    steps: dict[int, list[bool]] = {}
    for layer in network.layers:
        for source in sources(layer):
            steps.setdefault(source, []).append(_steps_over(layer))
    for source, all_step in steps.items():
        if all(all_step):
            raise CheckError(
                f"node {network.layers[source].name}: nothing reads it but convolutions of one pixel with a stride, "
                "which OpenVINO computes wrongly in several streams: export it in the onnxruntime dialect"
            )


def _steps_over(layer: Layer) -> bool:
    if not isinstance(layer, Convolution) or layer.groups > 1:
        return False
    return layer.weight.shape[2:] == (1, 1) and layer.stride != (1, 1)


def _check_rounding(read: ReadBack) -> None:
    """Refuse an addition that OpenVINO would fuse with a convolution before it, leaving out the rounding between."""
    for layer, shape in zip(read.network.layers, read.network.shapes, strict=True):
        for side in (layer.left, layer.right) if isinstance(layer, Add) and len(shape) == 3 else ():
            added = read.network.layers[side]
            if isinstance(added, Convolution) and side not in read.rounded:
                raise CheckError(
                    f"node {added.name}: it feeds the addition {layer.name}, so the openvino dialect needs a Round "
                    "before its QuantizeLinear: OpenVINO fuses the two and leaves out the rounding between"
                )
