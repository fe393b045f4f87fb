"""A model small enough to compute by hand: signed sums of pixels, exact in float32, with what a served file carries."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dmsh_serving.contract import CODE, IMAGE, LOGITS, Metadata
from dmsh_serving.encoder import known_answer
from dmsh_serving.encoder.props import graph_sha256
from dmsh_serving.images.framing import Framing

SIZE, BITS = 16, 64
FINGERPRINT = "ab" * 32
_WEIGHT = np.random.default_rng(7).integers(-1, 2, size=(SIZE * SIZE * 3, BITS))


def codes_of(images):
    """The oracle: whole-number arithmetic, (N, 16, 16, 3) uint8 -> (N, 8) uint8."""
    return np.packbits(logits_of(images) > 0, axis=1)


def logits_of(images):
    return (images.reshape(len(images), SIZE * SIZE * 3).astype(np.int64) - 128) @ _WEIGHT


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(count, SIZE, SIZE, 3), dtype=np.uint8)


WHITE = np.full((1, SIZE, SIZE, 3), 255, dtype=np.uint8)  # the one image whose logits are NaN


def write(path: Path, *, fingerprint=FINGERPRINT, answer=None, without=(), **more) -> Path:
    """Write the model; ``answer`` replaces the known answer, ``without`` leaves metadata out, ``more`` adds some."""
    images = random_images(3, seed=99)
    properties = {
        Metadata.FINGERPRINT: fingerprint,
        Metadata.BITS: str(BITS),
        Metadata.IMAGE_SIZE: str(SIZE),
        Metadata.FRAMING: str(Framing()),
        Metadata.KNOWN_ANSWER: known_answer.dump(images, codes_of(images)) if answer is None else answer,
        **{f"dmsh.{name}": value for name, value in more.items()},
    }
    model = _model()
    properties[Metadata.GRAPH_SHA256] = graph_sha256(model.SerializeToString(), str(path))
    helper.set_model_props(model, {key: value for key, value in properties.items() if key not in without})
    onnx.save(model, path)
    return path


def quantise(path: Path) -> Path:
    """Put integers into the file, as a quantiser does that keeps the metadata; here no code is another."""
    model = onnx.load(path)
    place = next(place for place, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    scale, zero = numpy_helper.from_array(np.float32(1), "scale"), numpy_helper.from_array(np.int8(0), "integer_zero")
    model.graph.initializer.extend([scale, zero])
    model.graph.node[place].input[0] = "rounded"
    names = "centred", "integers", "rounded"
    for more, kind in enumerate(("QuantizeLinear", "DequantizeLinear")):
        node = helper.make_node(kind, [names[more], "scale", "integer_zero"], [names[more + 1]])
        model.graph.node.insert(place + more, node)
    onnx.save(model, path)
    return path


def _model():
    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value), name)

    constants = [
        constant("zero_point", np.float32(128)),
        constant("white", np.float32(255)),
        constant("zero", np.float32(0)),
        constant("weight", _WEIGHT.astype(np.float32)),
        constant("in_bytes", np.array([0, -1, 8], np.int64)),
        constant("powers", np.array([128, 64, 32, 16, 8, 4, 2, 1], np.int32)),
        constant("last", np.array([-1], np.int64)),
        constant("second", np.array([1], np.int64)),
    ]
    nodes = [
        helper.make_node("Cast", [IMAGE], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Sub", ["flat", "zero_point"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weight"], ["sums"]),
        # 0 * (1 / distance from white): 0 for every image, NaN for a white one.
        helper.make_node("Sub", ["white", "flat"], ["darkness"]),
        helper.make_node("ReduceSum", ["darkness", "second"], ["dark"], keepdims=1),
        helper.make_node("Reciprocal", ["dark"], ["inverse"]),
        helper.make_node("Mul", ["inverse", "zero"], ["nothing"]),
        helper.make_node("Add", ["sums", "nothing"], [LOGITS]),
        helper.make_node("Greater", [LOGITS, "zero"], ["above"]),
        helper.make_node("Cast", ["above"], ["bits"], to=TensorProto.INT32),
        helper.make_node("Reshape", ["bits", "in_bytes"], ["grouped"]),
        helper.make_node("Mul", ["grouped", "powers"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "last"], ["packed"], keepdims=0),
        helper.make_node("Cast", ["packed"], [CODE], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", BITS]),
            helper.make_tensor_value_info(CODE, TensorProto.UINT8, ["N", BITS // 8]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
