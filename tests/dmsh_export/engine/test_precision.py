"""Precision in the graph: what is typed, what stays FP32, what is refused, and what ONNX Runtime shows of it."""

import struct

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from trt_models import quantise, random_encoder

from dmsh_export.cli.tables import guard_line
from dmsh_export.compare.generated import generated_images
from dmsh_export.compare.parity import compare
from dmsh_export.compare.runners import OnnxRunner, TorchRunner
from dmsh_export.engine.precision import HALF, _RoundingCount, precision_of, typed_graph
from dmsh_export.engine.qdq_check import with_plain_biases
from dmsh_export.engine.rounding import rounding_graph, with_known_answer
from dmsh_export.graph import element_types, metadata_of, model_from_file, with_shapes
from dmsh_export.parts import parts_of
from dmsh_export.seal import sealed
from dmsh_serving.contract import Metadata
from dmsh_serving.encoder.onnxruntime import OnnxEncoder
from dmsh_serving.encoder.open import open_encoder
from dmsh_serving.errors import CheckError, InputError


def types_of(graph, operators):
    kinds = element_types(graph)
    return {node.name: kinds[node.output[0]] for node in graph.node if node.op_type in operators}


def typed_file(source, precision, folder):
    out = folder / f"model.{precision}.onnx"
    typed = typed_graph(model_from_file(source), precision)
    out.write_bytes(sealed(with_known_answer(typed.model, source)))
    return out


def run(model, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_convolutions_become_half_and_everything_from_the_pooling_on_stays_fp32(encoders, precision):
    typed = typed_graph(model_from_file(encoders.demo), precision)
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    graph = typed.model.graph
    assert list(types_of(graph, {"Conv", "MaxPool"}).values()) == [half] * 12
    head = types_of(graph, {"ReduceMean", "Concat", "Gemm", "MatMul"})
    assert len(head) == 7
    assert set(head.values()) == {TensorProto.FLOAT}
    assert set(types_of(graph, {"Sub", "Div"}).values()) == {TensorProto.FLOAT}
    assert {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {
        "image": TensorProto.UINT8, "logits": TensorProto.FLOAT, "code": TensorProto.UINT8,
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"taps": (4,)},
        {"lateral_activation": "relu"},
        {"pooling": "max"},
        {"fusion_activation": "none"},
        {"folded": False},
    ],
    ids=str,
)
def test_any_head_is_told_from_its_trunk(fields, tmp_path):
    random_encoder(tmp_path / "model.onnx", **fields)
    typed = typed_graph(model_from_file(tmp_path / "model.onnx"), "fp16")
    convolutions = types_of(typed.model.graph, {"Conv"})
    assert len(convolutions) >= 8
    assert set(convolutions.values()) == {TensorProto.FLOAT16}
    assert set(types_of(typed.model.graph, {"Gemm", "ReduceMean", "ReduceMax"}).values()) == {TensorProto.FLOAT}


def test_uint8_is_cast_at_the_edge_and_the_codes_stay_the_same(encoders, small_images, tmp_path):
    typed = typed_graph(model_from_file(encoders.demo), "fp32")
    assert [node.op_type for node in typed.model.graph.node][:2] == ["Cast", "Transpose"]
    (tmp_path / "typed.onnx").write_bytes(sealed(typed.model))
    with OnnxEncoder(encoders.demo) as plain, OnnxEncoder(tmp_path / "typed.onnx") as moved:
        np.testing.assert_array_equal(plain.infer(small_images).logits, moved.infer(small_images).logits)


def test_fp32_keeps_the_code_space_and_a_lower_precision_gets_its_own(encoders):
    source = model_from_file(encoders.demo)
    theirs = metadata_of(source)["dmsh.fingerprint"]
    plain = typed_graph(model_from_file(encoders.demo), "fp32")
    assert (plain.fingerprint, plain.parent_fingerprint) == (theirs, None)
    made = [typed_graph(model_from_file(encoders.demo), precision) for precision in ("fp16", "bf16", "fp16")]
    assert [typed.parent_fingerprint for typed in made] == [theirs] * 3
    assert made[0].fingerprint == made[2].fingerprint
    assert len({theirs, made[0].fingerprint, made[1].fingerprint}) == 3
    said = metadata_of(made[0].model)
    assert (said["dmsh.fingerprint"], said["dmsh.parent_fingerprint"], said["dmsh.precision"]) == (
        made[0].fingerprint, theirs, "fp16",
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-7e4, 7e4, width=32)))
def test_what_fp16_does_to_weights_is_counted_as_struct_rounds_them(weights):
    count = _RoundingCount(HALF["fp16"])
    count.rounded(numpy_helper.from_array(weights, "weight"), "half")
    infinite = zero = subnormal = 0
    for value in weights.tolist():
        try:
            back = struct.unpack("<e", struct.pack("<e", value))[0]
        except OverflowError:
            infinite += 1
            continue
        zero += back == 0 != value
        subnormal += 0 < abs(back) < 2.0**-14
    assert (count.to_infinity, count.to_zero, count.to_subnormal) == (infinite, zero, subnormal)


def test_a_weight_too_large_for_fp16_is_refused_by_name_and_fits_bf16(encoders):
    model = model_from_file(encoders.demo)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("stages.1.1.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[5] = 7e4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with pytest.raises(CheckError, match=r"1 weights are too large for fp16 .*stages\.1\.1\.weight: use --bf16"):
        typed_graph(model, "fp16")
    assert typed_graph(copy, "bf16").rounding.to_infinity == 0


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_a_typed_graph_keeps_its_fingerprint_and_one_that_was_changed_is_refused(precision, encoders, tmp_path):
    model = model_from_file(typed_file(encoders.named("demo", precision), precision, tmp_path))
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    assert typed_graph(model, precision).fingerprint == metadata_of(model)["dmsh.fingerprint"]
    weight = next(tensor for tensor in changed.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(1), weight.name))
    with pytest.raises(InputError, match=f"its fingerprint is not that of its {precision} graph: it was changed"):
        typed_graph(changed, precision)


def test_a_typed_graph_is_taken_as_it_is_and_cannot_be_another_type(encoders, tmp_path):
    first = typed_file(encoders.demo, "fp16", tmp_path)
    again = typed_graph(model_from_file(first), "fp16")
    assert again.fingerprint == metadata_of(onnx.load(first))["dmsh.fingerprint"]
    assert again.model.graph.node == model_from_file(first).graph.node
    for other in ("fp32", "bf16"):
        with pytest.raises(InputError, match=f"the model is fp16 already, which --{other} cannot change"):
            typed_graph(model_from_file(first), other)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_the_graph_of_a_plan_encodes_nothing_by_itself(precision, encoders, tmp_path):
    path = typed_file(encoders.named("demo", precision), precision, tmp_path)
    with pytest.raises(InputError, match=f"is the {precision} graph of a TensorRT plan.*SearchClient.encode"):
        open_encoder(path)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_plain_graph_is_refused_where_q_dq_is_asked_for(encoders, precision):
    with pytest.raises(InputError, match=f"--{precision} takes a model with QuantizeLinear/DequantizeLinear"):
        typed_graph(model_from_file(encoders.demo), precision)


def test_q_dq_in_the_head_or_asymmetric_is_refused_with_its_node(encoders, tmp_path):
    with pytest.raises(InputError, match=r"Linear \(node .*\) is in the head, which stays fp32"):
        typed_graph(model_from_file(quantise(encoders.demo, tmp_path / "head.onnx", head=True)), "int8")
    with pytest.raises(InputError, match=r"is in uint8, --int8 takes int8 only: quantise symmetrically"):
        typed_graph(model_from_file(quantise(encoders.demo, tmp_path / "u8.onnx", symmetric=False)), "int8")
    model = model_from_file(quantise(encoders.demo, tmp_path / "s8.onnx"))
    zero_point = next(tensor for tensor in model.graph.initializer if tensor.name == "relu_2_zero_point")
    zero_point.CopyFrom(numpy_helper.from_array(np.int8(3), zero_point.name))
    with pytest.raises(InputError, match="has a zero point other than 0"):
        typed_graph(model, "int8")
    with pytest.raises(InputError, match="the model is int8 already, which --fp16 cannot change"):
        typed_graph(model_from_file(tmp_path / "s8.onnx"), "fp16")


def test_int32_biases_become_constants_without_a_changed_bit(encoders, small_images, tmp_path):
    path = quantise(encoders.demo, tmp_path / "qdq.onnx")
    before, after = onnx.load(path), onnx.load(path)
    with_plain_biases(after.graph)
    removed = len(before.graph.node) - len(after.graph.node)
    assert removed == 8
    feed = {"image": small_images}
    np.testing.assert_array_equal(run(before, feed), run(after, feed))


def two_convolutions():
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype(np.float16) for shape in ((8, 3, 3, 3), (8, 8, 1, 1))]
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["a", "w0"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w1"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model), weights


def test_the_rounding_graph_rounds_where_onnx_runtime_by_itself_does_not():
    import torch
    from torch.nn.functional import conv2d

    model, weights = two_convolutions()
    x = np.random.default_rng(1).normal(size=(1, 3, 10, 10)).astype(np.float32) * 3
    first, second = (torch.from_numpy(weight.astype(np.float32)) for weight in weights)
    between = conv2d(torch.from_numpy(x).half().float(), first).half().float().relu()
    expected = conv2d(between, second).half().float().numpy()
    shown = run(rounding_graph(model), {"x": x})
    # Sums in another order may round to the neighbouring half: 2^-10 of the largest value, and rarely.
    differs = shown != expected
    assert differs.mean() < 0.02
    assert np.abs(shown - expected).max() <= np.abs(expected).max() * 2**-10
    assert (run(model, {"x": x}) != expected).mean() > 0.5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_typed_file_carries_its_own_known_answer(encoders, precision, tmp_path):
    path = typed_file(encoders.demo, precision, tmp_path)
    assert precision_of(onnx.load(path).graph) == precision
    if precision == "fp16":
        OnnxEncoder(path).close()
    else:
        with pytest.raises(InputError, match="ONNX Runtime cannot load it"):
            OnnxEncoder(path)
    with OnnxRunner(path) as runner:
        assert runner.infer(generated_images(3, 32)).code.shape == (3, 8)


def test_parity_measures_a_lower_precision_and_says_whether_a_guard_is_needed(encoders, demo_model, tmp_path):
    images = generated_images(64, 32)
    targets = [OnnxRunner(typed_file(encoders.demo, precision, tmp_path)) for precision in ("fp16", "bf16")]
    fp16, bf16 = compare(TorchRunner(demo_model), [*targets], images, max_batch=4).targets
    assert 0 < fp16.worst_logit_error < bf16.worst_logit_error < 1
    assert fp16.fingerprint != bf16.fingerprint != compare(TorchRunner(demo_model), [], images).fingerprint
    assert (fp16.invariance.wrong_codes, bf16.invariance.wrong_codes) == (0, 0)
    for target in (fp16, bf16):
        needed = target.bits_at_risk > 0
        assert ("the guard is needed" in guard_line(target, "PyTorch")) == needed
        assert ("no guard is needed" in guard_line(target, "PyTorch")) != needed


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_parity_measures_q_dq_graphs_too(encoders, demo_model, precision, tmp_path):
    path = typed_file(encoders.named("demo", precision), precision, tmp_path)
    (target,) = compare(TorchRunner(demo_model), [OnnxRunner(path)], generated_images(16, 32), max_batch=2).targets
    assert 0 < target.worst_logit_error < 10
    assert target.wrong_bits < 0.2 * target.bits_compared


def test_parity_refuses_a_low_precision_encoder_of_another_checkpoint(encoders, tmp_path):
    other = random_encoder(tmp_path / "other.onnx", bits=64)
    target = OnnxRunner(typed_file(encoders.demo, "fp16", tmp_path))
    with pytest.raises(InputError, match="is of another code space than PyTorch"):
        compare(TorchRunner(other), [target], generated_images(2, 32))


def test_files_that_are_no_encoders_are_refused_in_one_line(encoders, tmp_path):
    (tmp_path / "text.onnx").write_text("no protobuf at all")
    with pytest.raises(InputError, match="is not an ONNX model"):
        model_from_file(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="is not a file"):
        model_from_file(tmp_path / "absent.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="its inputs and outputs are none"):
        model_from_file(tmp_path / "empty.onnx")
    model = onnx.load(encoders.demo)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(InputError, match="its weights lie outside the file"):
        model_from_file(tmp_path / "outside.onnx")


def test_an_operator_of_nobody_is_named_with_its_node(encoders):
    model = model_from_file(encoders.demo)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Sparkle", "acme"
    with pytest.raises(InputError, match=rf"operator Sparkle \(node {node.name}\) is no ONNX operator"):
        typed_graph(model, "fp16")


def test_a_graph_without_convolutions_or_metadata_is_refused(encoders):
    model = model_from_file(encoders.demo)
    del model.metadata_props[:]
    with pytest.raises(InputError, match=r"it has no dmsh\.fingerprint, dmsh\.bits, dmsh\.image_size in its metadata"):
        typed_graph(model, "fp16")
    import tiny_model

    with pytest.raises(InputError, match="no convolution between image and pooled features"):
        parts_of(onnx.shape_inference.infer_shapes(tiny_model._model()).graph)


def test_weights_that_two_nodes_of_the_trunk_share_are_counted_once(encoders):
    model = model_from_file(encoders.demo)
    separate = typed_graph(model_from_file(encoders.demo), "fp16").rounding
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    bias = helper.make_node("Add", [first.output[0], "bias"], ["with_bias"], name="one")
    again = helper.make_node("Add", ["with_bias", "bias"], ["with_both"], name="other")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == first.output[0]:
                node.input[index] = "with_both"
    where = list(model.graph.node).index(first)
    model.graph.node.insert(where + 1, bias)
    model.graph.node.insert(where + 2, again)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1e-9]), "bias"))
    shared = typed_graph(with_shapes(model, "the model"), "fp16").rounding
    assert (shared.values, shared.to_zero) == (separate.values + 1, separate.to_zero + 1)


def test_the_code_space_of_a_typed_graph_hangs_on_its_parent_its_nodes_and_its_weights(encoders):
    def fingerprint(change=lambda model: None):
        model = model_from_file(encoders.demo)
        change(model)
        return typed_graph(model, "fp16").fingerprint

    def another_parent(model):
        entry = next(entry for entry in model.metadata_props if entry.key == Metadata.FINGERPRINT)
        entry.value = "ab" * 32

    def another_node(model):
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type = "Tanh"

    def another_weight(model):
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    found = [fingerprint(), *map(fingerprint, (another_parent, another_node, another_weight))]
    assert fingerprint() == found[0]
    assert len(set(found)) == len(found)
