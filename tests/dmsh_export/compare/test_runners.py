"""What is compared is what serves."""

import numpy as np
import onnx
import pytest
import tiny_model
from onnx import TensorProto, helper, numpy_helper

from dmsh_export.compare.runners import OnnxRunner
from dmsh_export.graph import metadata_of
from dmsh_export.seal import sealed
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import InputError


def with_hidden_rounding(model):
    """Let logits depend on a half-precision sum that is 0 only if each operation rounds: ONNX Runtime drops that."""
    graph = model.graph
    (last,) = [node for node in graph.node if "logits" in node.output]
    last.output[list(last.output).index("logits")] = "hidden_honest"
    for node in graph.node:
        node.input[:] = ["hidden_changed" if name == "logits" else name for name in node.input]
    signs = np.where(np.arange(tiny_model.BITS) % 2, 1e9, -1e9).astype(np.float32)[None]
    for name, array in (
        ("hidden_share", np.array(1 / 256, np.float32)),
        ("hidden_large", np.array(2048, np.float16)),
        ("hidden_signs", signs),
        ("hidden_column", np.array([-1, 1], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(array, name))
    hidden = [
        helper.make_node("Cast", ["image"], ["hidden_pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["hidden_pixels"], ["hidden_mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["hidden_mean", "hidden_share"], ["hidden_below_1"]),
        helper.make_node("Cast", ["hidden_below_1"], ["hidden_half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["hidden_half", "hidden_large"], ["hidden_sum"]),
        helper.make_node("Sub", ["hidden_sum", "hidden_large"], ["hidden_zero"]),
        helper.make_node("Cast", ["hidden_zero"], ["hidden_back"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["hidden_back", "hidden_column"], ["hidden_rows"]),
        helper.make_node("MatMul", ["hidden_rows", "hidden_signs"], ["hidden_shift"]),
        helper.make_node("Add", ["hidden_honest", "hidden_shift"], ["hidden_changed"]),
        helper.make_node("Identity", ["hidden_changed"], ["logits"]),
    ]
    nodes = list(graph.node)
    place = nodes.index(last) + 1
    del graph.node[:]
    graph.node.extend([*nodes[:place], *hidden, *nodes[place:]])
    return model


@pytest.mark.parametrize("said", [{}, {"dmsh.precision": "int8"}])
def test_a_file_that_may_serve_is_compared_as_it_serves(said, tmp_path):
    path = tiny_model.write(tmp_path / "model.onnx")
    model = with_hidden_rounding(onnx.load(path))
    helper.set_model_props(model, {**metadata_of(model), **said})
    path.write_bytes(sealed(model))
    images = tiny_model.random_images(20)
    with open_encoder(path, check_known_answer=False) as encoder, OnnxRunner(path) as runner:
        served, compared = encoder.infer(images), runner.infer(images)
    np.testing.assert_array_equal(compared.code, served.code)
    assert not np.array_equal(compared.code, tiny_model.codes_of(images))


@pytest.mark.parametrize(
    ("precision", "parent"),
    [("fp16", None), ("fp16", tiny_model.FINGERPRINT), (None, "a" * 64), (None, tiny_model.FINGERPRINT)],
)
def test_a_precision_that_does_not_fit_the_code_space_is_refused(precision, parent, tmp_path):
    path = tiny_model.write(tmp_path / "model.onnx")
    model = with_hidden_rounding(onnx.load(path))
    said = {"dmsh.precision": precision, "dmsh.parent_fingerprint": parent}
    helper.set_model_props(model, metadata_of(model) | {key: value for key, value in said.items() if value})
    path.write_bytes(sealed(model))
    for opened in (open_encoder, OnnxEncoder, lambda path: OnnxRunner(path).__enter__()):
        with pytest.raises(InputError, match=f"is of the precision {precision} .*does not fit together"):
            opened(path)
