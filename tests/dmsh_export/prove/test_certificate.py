"""The certificate: what is proven of a true model, and the node that is named in one that was tampered with."""

import dataclasses
import hashlib
from typing import get_args

import integer_networks as networks
import numpy as np
import pytest
import tiny_model
from onnx import helper, numpy_helper
from tampering import (
    attribute,
    bypass,
    change,
    constant,
    give,
    give_input,
    insert_after,
    multiply_again,
    node,
    scale_residual,
    swap_inputs,
    with_first,
    zero,
)

from dmsh_export.graph import Dialect, model_from_file
from dmsh_export.prove import bound_rows, certificate
from dmsh_export.prove.bound_rows import bounds_of
from dmsh_export.prove.certificate import certify
from dmsh_export.prove.integer_from_onnx import integer_from_onnx
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_model.fingerprint import integer_fingerprint
from dmsh_model.integer.layers import Add, Convolution, GlobalMax, Image, Linear, Logits
from dmsh_model.integer.network import IntegerNetwork, canonical_hash
from dmsh_model.integer.reference import outputs
from dmsh_serving.contract import Metadata
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.framing import Framing

MODEL = networks.model()
DIALECTS = get_args(Dialect)


def written(dialect, network=MODEL.network):
    model, framing = onnx_from_network(network, dialect, 20), MODEL.config.framing
    space = integer_fingerprint(canonical_hash(network), framing)
    said = {Metadata.FINGERPRINT: space, Metadata.FRAMING: str(framing)}
    helper.set_model_props(model, {**said, Metadata.DIALECT: dialect})
    return model


def prove(model, tmp_path, against=MODEL.network):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return certify(path, against)


def test_a_certificate_names_the_bytes_that_were_proven_though_the_file_is_replaced_meanwhile(tmp_path, monkeypatch):
    path, proven = tmp_path / "model.onnx", written("onnxruntime").SerializeToString()
    path.write_bytes(proven)

    def replaced(network):
        path.write_bytes(b"another")
        return bounds_of(network)

    monkeypatch.setattr(certificate, "bounds_of", replaced)
    assert certify(path).sha256 == hashlib.sha256(proven).hexdigest()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("also_read", [False, True])
def test_a_map_that_every_reader_steps_over_is_refused_where_openvino_computes(dialect, also_read, tmp_path):
    random, layers = np.random.default_rng(1), list(MODEL.network.layers)
    layers[6] = networks.convolution(random, "stepping", 5, 4, 8, 1, stride=(2, 1))
    if not also_read:
        layers[8] = dataclasses.replace(layers[8], source=6)
        layers[10] = dataclasses.replace(layers[10], weight=layers[10].weight[:, :8])
    else:
        layers[8] = dataclasses.replace(layers[8], source=5)
    network = IntegerNetwork(tuple(layers))
    if dialect == "openvino" and not also_read:
        with pytest.raises(
            CheckError, match="node 5_pool: nothing reads it but convolutions of one pixel with a stride"
        ):
            prove(written(dialect, network), tmp_path, network)
    else:
        assert prove(written(dialect, network), tmp_path, network).dialect == dialect


@pytest.mark.parametrize("dialect", DIALECTS)
def test_several_outputs_of_groups_of_one_channel_are_refused_where_openvino_computes(dialect, tmp_path):
    random, layers = np.random.default_rng(1), list(MODEL.network.layers)
    layers[6] = networks.convolution(random, "multiplied", 5, 16, 8, 1, groups=8)
    weight = random.integers(-127, 128, (16, 24)).astype(np.int8)
    layers[10] = dataclasses.replace(layers[10], weight=weight)
    network = IntegerNetwork(tuple(layers))
    if dialect == "openvino":
        with pytest.raises(CheckError, match="multiplied: it makes 16 channels of 8 groups of one, which OpenVINO"):
            prove(written(dialect, network), tmp_path, network)
    else:
        assert prove(written(dialect, network), tmp_path, network).dialect == dialect


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("said", [*DIALECTS, None])
def test_a_file_that_names_another_dialect_than_its_own_is_not_proven(dialect, said, tmp_path):
    model = written(dialect)
    (stated,) = [prop for prop in model.metadata_props if prop.key == Metadata.DIALECT]
    if said == dialect:
        assert prove(model, tmp_path).dialect == dialect
        return
    if said is None:
        model.metadata_props.remove(stated)
    else:
        stated.value = said
    with pytest.raises(CheckError, match=f"written in the {dialect} dialect, its {Metadata.DIALECT} says {said}: it"):
        prove(model, tmp_path)


VIOLATIONS = {
    "a scale that is not a power of two": (
        "onnxruntime", lambda m: change(m, "1_stem.scale", with_first(0.3)), "node 1_stem", "0.3.* not a power of two"),
    "an activation at another scale": (
        "onnxruntime", lambda m: give(m, "3_grouped", 1, np.float32(2)), "node 3_grouped", "scale of its input is 2"),
    "a missing clip": (
        "onnxruntime", lambda m: bypass(m, "2_depthwise.clip"), "node 2_depthwise", "low is -128, the checkpoint's 0"),
    "a clip at another value": (
        "onnxruntime", lambda m: give(m, "2_depthwise.clip", 2, np.uint8(230)), "node 2_depthwise", "high is 102"),
    "a clip that is no integer": (
        "tensorrt", lambda m: give(m, "2_depthwise.clip", 2, np.float32(96.5)), "node 2_depthwise.clip", "no integer"),
    "a half-integer bias": (
        "tensorrt",
        lambda m: change(m, "1_stem.bias", lambda b: b + numpy_helper.to_array(constant(m, "1_stem.scale")) / 2),
        "node 1_stem", "bias.* no integer"),
    "an accumulator beyond 2^31": (
        "onnxruntime", lambda m: change(m, "1_stem.bias", with_first(2**31 - 1)), "1_stem", "could reach 214"),
    "a sum beyond 2^24 in float32": (
        "tensorrt", lambda m: change(m, "10_fusion.bias", with_first(2**24)), "node 10_fusion", "below 2\\^24 only"),
    "a sigmoid": (
        "tensorrt", lambda m: insert_after(m, "1_stem.relu", "Sigmoid"), r"node smuggled \(Sigmoid\)", "exact set"),
    "a square root in the head": (
        "onnxruntime", lambda m: insert_after(m, "8_sum", "Sqrt"), r"node smuggled \(Sqrt\)", "exact set"),
    "a changed weight": (
        "tensorrt", lambda m: change(m, "2_depthwise.weight", lambda w: w ^ (np.arange(w.size).reshape(w.shape) == 7)),
        "node 2_depthwise", "1 of 72 values of its weight"),
    "an int8 zero point that is not 0": (
        "tensorrt", lambda m: give(m, "3_grouped.quantise", 2, np.int8(3)), "node 3_grouped.quantise",
        "zero point is 3"),
    "a uint8 zero point that is not 128": (
        "onnxruntime", lambda m: give(m, "3_grouped", 7, np.uint8(127)), "node 3_grouped", "zero point is 127"),
    "a zero point of weights": (
        "onnxruntime", lambda m: change(m, "1_stem.weight_zero_point", with_first(1)), "node 1_stem", "zero point"),
    "a swapped tap": ("tensorrt", lambda m: swap_inputs(m, "9_scales"), "node 9_scales", "its parts"),
    "another shift": (
        "onnxruntime", lambda m: change(m, "10_fusion.factor", lambda f: f * 2), "node 10_fusion",
        "16 of 16 values of its shift"),
    "a shift beyond 16": (
        "onnxruntime", lambda m: change(m, "1_stem.scale", with_first(2.0**-17)), "node 1_stem", "is not 0 to 16"),
    "a weight that some ARM64 kernels cannot add": (
        "onnxruntime", lambda m: change(m, "2_depthwise.weight", with_first(-128)), "2_depthwise",
        "1 of 72 weights are -128"),
    "another exponent of a logit": (
        "onnxruntime", lambda m: change(m, "11_hash.factor", with_first(2.0**9)), "node 11_hash", "1 of 11 values"),
    "a float convolution": (
        "tensorrt",
        lambda m: give(m, "1_stem", 1, numpy_helper.to_array(constant(m, "1_stem.weight")).astype(np.float32)),
        "node 1_stem", "are floats"),
    "a fractional weight in the head": (
        "tensorrt", lambda m: change(m, "10_fusion.weight", with_first(0.5)), "node 10_fusion",
        "weight 0.5 is no integer"),
    "partial windows": (
        "onnxruntime", lambda m: attribute(m, "5_pool", "ceil_mode", 1), "node 5_pool", "ceil_mode is outside"),
    "padding on another side": (
        "tensorrt", lambda m: attribute(m, "1_stem", "pads", [1, 1, 1, 0]), "node 1_stem", "its padding is"),
    "another offset of the image": (
        "tensorrt", lambda m: give(m, "0_image", 1, np.float32(127)), "node 0_image", "subtracts 127"),
    "another threshold": (
        "onnxruntime", lambda m: give(m, "code.above", 1, np.float32(0.5)), "node code.above", "threshold is 0.5"),
    "bits in another order": (
        "onnxruntime", lambda m: change(m, "code.packing", lambda p: p[::-1].copy()), "node code.packed", "packbits"),
    "a residual from elsewhere": (
        "onnxruntime", lambda m: give_input(m, "4_residual.right", "2_depthwise.clip"), "node 4_residual",
        "right is 2"),
    "no rounding": (
        "tensorrt", lambda m: bypass(m, "10_fusion.round"), "node 10_fusion.clip", "clips something else"),
    "a ReLU after a max pool": (
        "tensorrt", lambda m: insert_after(m, "5_pool", "Relu"), r"node smuggled \(Relu\)", "clips something else"),
    "a ReLU in the other dialect": (
        "onnxruntime", lambda m: insert_after(m, "9_scales", "Relu"), r"node smuggled \(Relu\)", "onnxruntime dialect"),
    "a default that is left to ONNX": (
        "tensorrt", lambda m: attribute(m, "1_stem", "group"), "node 1_stem", "attribute group is missing"),
    "a factor per column": (
        "tensorrt", lambda m: scale_residual(m, np.full(16, 0.5, np.float32)), "node 4_residual.shift", "shape .16."),
    "a factor on top of a factor": (
        "tensorrt", lambda m: multiply_again(m, "10_fusion.shift"), r"node smuggled \(Mul\)", "has a factor already"),
    "a factor beyond float32": (
        "tensorrt", lambda m: scale_residual(m, np.float32(2.0**-120)), "node 4_residual.shift", "beyond 2.100"),
    "a clip that hides who reads a layer": (
        "onnxruntime", lambda m: insert_after(m, "3_grouped", "Clip", zero(m, np.uint8(0))), r"smuggled \(Clip\)",
        "clips nothing"),
    "a max pool that is multiplied": (
        "tensorrt", lambda m: insert_after(m, "5_pool", "Mul", zero(m, np.float32(0.5))), r"smuggled \(Mul\)",
        "something else than the sums"),
    "a clip before a shift": (
        "onnxruntime", lambda m: insert_after(m, "4_residual", "Clip", zero(m, np.float32(0))),
        r"smuggled \(Clip\)", "clips something else"),
    "a quantisation at another scale": (
        "tensorrt", lambda m: give(m, "3_grouped.quantise", 1, np.float32(2)), "node 3_grouped.quantise",
        "scale is 2, not 1"),
    "a dequantisation at another scale": (
        "tensorrt", lambda m: give(m, "3_grouped.dequantise", 1, np.float32(2)), "node 3_grouped.dequantise",
        "scale is 2, not 1"),
    "a rounding in the trunk": (
        "tensorrt", lambda m: insert_after(m, "3_grouped", "Round"), r"smuggled \(Round\)", "of the head"),
    "a convolution before an addition without its rounding": (
        "openvino", lambda m: bypass(m, "3_grouped.round"), "node 3_grouped: it feeds the addition 4_residual",
        "needs a Round"),
    "a rounding that is there twice": (
        "openvino", lambda m: insert_after(m, "3_grouped.round", "Round"), r"smuggled \(Round\)",
        "of the head or of a convolution"),
    "a rounding of an addition": (
        "openvino", lambda m: insert_after(m, "4_residual", "Round"), r"smuggled \(Round\)", "rounds something else"),
    "a rounding of a max pool": (
        "openvino", lambda m: insert_after(m, "5_pool", "Round"), r"smuggled \(Round\)", "rounds something else"),
    "a clip behind the rounding": (
        "openvino", lambda m: insert_after(m, "3_grouped.round", "Relu"), r"smuggled \(Relu\)", "clips something else"),
    "an image that is moved twice": (
        "openvino", lambda m: insert_after(m, "0_image.transpose", "Transpose"), r"smuggled \(Transpose\)", "perm"),
}  # fmt: skip
# What the checker of ONNX would refuse as well, or what lies around the nodes: in every dialect.
BEYOND = {
    "an attribute at another value": (
        lambda m: attribute(m, "8_sum", "keepdims", 1), "node 8_sum .*keepdims = 1.* has keepdims = 0"),
    "padding with three sides": (
        lambda m: attribute(m, "1_stem", "pads", [1, 1, 1]), "node 1_stem .*top, left, bottom, right"),
    "a second input": (lambda m: node(m, "10_fusion.round").input.append("9_scales"), "10_fusion.round .*has 2 inputs"),
    "no input": (lambda m: node(m, "9_scales").ClearField("input"), "node 9_scales .*has 0 inputs.* part"),
    "sparse constants": (lambda m: m.graph.sparse_initializer.add(), "sparse constants"),
    "functions": (lambda m: m.functions.add(), "functions"),
    "another operator set beside ONNX's": (
        lambda m: m.opset_import.add(domain="com.microsoft", version=1), "operator sets"),
    "another operator set instead": (lambda m: setattr(m.opset_import[0], "domain", "ai.onnx.ml"), "operator sets"),
    "an operator set of tomorrow": (lambda m: setattr(m.opset_import[0], "version", 26), "operator sets"),
    "a constant with two values": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "name of another"),
    "a constant instead of the image": (lambda m: setattr(m.graph.initializer[0], "name", "image"), "name of another"),
    "a node of a foreign domain": (
        lambda m: setattr(node(m, "9_scales"), "domain", "com.microsoft"),
        r"node 9_scales .*com.microsoft::Concat is outside the exact set"),
    "a result that nothing uses": (
        lambda m: m.graph.node.append(helper.make_node("Cast", ["code.above"], ["unused"], name="unused", to=1)),
        "node unused .*nothing uses its result"),
    "a node with two results": (lambda m: node(m, "5_pool").output.append("indices"), "node 5_pool .*several outputs"),
    "an attribute that is there twice": (
        lambda m: node(m, "9_scales").attribute.append(helper.make_attribute("axis", 1)), "node 9_scales .*twice"),
    "an image that is not square": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 20), "node 0_image.*not uint8"),
    "an image of floats": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "node 0_image.*not uint8"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_true_model_is_proven_to_be_the_checkpoints_network(dialect, tmp_path):
    certificate = prove(written(dialect), tmp_path)
    assert certificate.dialect == dialect
    assert certificate.network_hash == canonical_hash(MODEL.network)
    assert certificate.checkpoint == certificate.fingerprint == MODEL.fingerprint
    assert {bound.kind for bound in certificate.bounds} == {"Convolution", "Add", "GlobalSum", "Linear", "Logits"}
    said = certificate.to_dict()
    assert said["proven"] is True
    assert all(bound["below_2_31"] and bound["below_2_24"] for bound in said["bounds"])
    needs = " ".join(condition.needs for condition in certificate.conditions)
    per_dialect = {"openvino": "INFERENCE_PRECISION_HINT=f32"}.get(dialect, "TF32 off")
    for word in ("int32", per_dialect, "session.x64quantprecision=1"):
        assert word in needs


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_is_found_and_its_node_named(violation, tmp_path):
    dialect, tamper, where, why = VIOLATIONS[violation]
    model = written(dialect)
    tamper(model)
    with pytest.raises(CheckError, match=f"(?s){where}.*{why}"):
        prove(model, tmp_path)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("what", BEYOND)
def test_a_file_with_more_than_an_integer_network_is_refused(what, dialect):
    tamper, why = BEYOND[what]
    model = written(dialect)
    tamper(model)
    with pytest.raises(CheckError, match=why):
        integer_from_onnx(model)


def test_a_changed_weight_is_found_without_the_checkpoint_too(tmp_path):
    model = written("onnxruntime")
    change(model, "2_depthwise.weight", with_first(5))
    with pytest.raises(CheckError, match="was changed after its export"):
        prove(model, tmp_path, against=None)


def test_a_float_model_is_no_case_for_a_proof(tmp_path):
    with pytest.raises(InputError, match="float model"):
        certify(tiny_model.write(tmp_path / "float.onnx"))


def test_no_image_drives_an_accumulator_past_its_bound():
    bounds = {index: MODEL.network.accumulators[index] for index in range(len(MODEL.network.layers))}
    seen = {}

    def note(index, sums):
        seen[index] = max(seen.get(index, 0), float(sums.abs().max()))

    extremes = np.random.default_rng(0).integers(0, 2, (32, networks.SIZE, networks.SIZE, 3)).astype(np.uint8) * 255
    for _ in outputs(MODEL.network, extremes, note):
        pass
    assert set(seen) == {
        index for index, layer in enumerate(MODEL.network.layers) if isinstance(layer, Convolution | Linear | Logits)
    }
    assert all(value <= bounds[index].peak for index, value in seen.items())


def test_the_bound_of_a_convolution_is_reached_by_the_worst_image():
    random = np.random.default_rng(5)
    weight = random.integers(-127, 128, (1, 3, 4, 4)).astype(np.int8)
    layers = (
        Image("image", 4),
        Convolution("only", 0, weight, np.array([17], np.int32), np.array([8], np.int8)),
        networks.GlobalMax("max", 1),
        Logits("hash", 2, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    (bound, _) = bounds_of(network)
    worst = np.where(weight[0] > 0, 255, 0).astype(np.uint8).transpose(1, 2, 0)[None]
    best = 255 - worst
    sums = [int((image[0].transpose(2, 0, 1).astype(int) - 128).ravel() @ weight.ravel().astype(int)) + 17
            for image in (best, worst)]  # fmt: skip
    assert [bound.lowest, bound.highest] == sums


def test_a_layer_past_2_to_the_24_is_said_to_need_int32_kernels(tmp_path, monkeypatch):
    # The stem reaches more than this, the head less: as in a real network with 2^24.
    monkeypatch.setattr(bound_rows, "FLOAT32_LIMIT", 200_000)
    (condition, *_) = prove(written("onnxruntime"), tmp_path).conditions
    assert "int32" in condition.needs
    assert "can reach 2^24 or more, 1_stem first" in condition.why


def test_reading_back_gives_the_network_of_every_dialect_for_other_weights_too():
    for seed in range(1, 4):
        network = networks.network(seed)
        for dialect in DIALECTS:
            read = integer_from_onnx(onnx_from_network(network, dialect, 20))
            assert (read.dialect, canonical_hash(read.network)) == (dialect, canonical_hash(network))


def reaching(sums, *, shift=8, bias=0):
    """A network whose convolution has partial sums of up to ``sums`` and one output: below 2^24 in the logits."""
    random = np.random.default_rng(1)
    weight = np.zeros(3 * 40 * 40, np.int8)
    whole, rest = divmod((sums - abs(bias)) // 128, 127)
    weight[:whole], weight[whole] = 127, rest
    assert (sums - abs(bias)) % 128 == 0
    layers = (
        Image("image", 40),
        Convolution(
            "large", 0, random.permutation(weight).reshape(1, 3, 40, 40), np.array([bias], np.int32),
            np.array([shift], np.int8),
        ),
        GlobalMax("max", 1),
        Logits("hash", 2, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )  # fmt: skip
    return networks.IntegerNetwork(layers)


def proof_of(network, dialect, tmp_path):
    model = onnx_from_network(network, dialect, 20)
    space = integer_fingerprint(canonical_hash(network), Framing.parse(None))
    helper.set_model_props(model, {Metadata.FINGERPRINT: space, Metadata.DIALECT: dialect})
    return prove(model, tmp_path, network)


def test_the_framing_that_a_model_names_is_part_of_what_its_fingerprint_proves(tmp_path):
    padded = Framing("pad")
    model = onnx_from_network(MODEL.network, "onnxruntime", 20)
    said = {
        Metadata.FINGERPRINT: integer_fingerprint(canonical_hash(MODEL.network), padded),
        Metadata.FRAMING: str(padded),
        Metadata.DIALECT: "onnxruntime",
    }
    helper.set_model_props(model, said)
    assert prove(model, tmp_path).fingerprint == said[Metadata.FINGERPRINT]
    helper.set_model_props(model, {**said, Metadata.FRAMING: str(Framing())})
    with pytest.raises(CheckError, match="its metadata says"):
        prove(model, tmp_path)


@pytest.mark.parametrize(("sums", "below"), [(2**24 - 1, True), (2**24, False)])
def test_an_accumulator_of_2_to_the_24_needs_int32_which_one_dialect_has_and_one_less_does_not(sums, below, tmp_path):
    bias = sums % 128
    network = reaching(sums, bias=-bias)
    certificate = proof_of(network, "onnxruntime", tmp_path)
    (bound, *_) = certificate.bounds
    assert (bound.peak, bound.below_float32) == (sums, below)
    needs = {condition.runtime: condition.why for condition in certificate.conditions}["ONNX Runtime"]
    assert ("every partial sum is below 2^24" in needs) is below
    assert ("can reach 2^24 or more" in needs) is not below
    for dialect, runtimes in (
        ("tensorrt", ["TensorRT", "ONNX Runtime"]),
        ("openvino", ["OpenVINO, CPU", "ONNX Runtime"]),
    ):
        if not below:  # OpenVINO and ONNX Runtime compute some of their convolutions in float32
            with pytest.raises(CheckError, match=f"node 1_large: its sums reach {sums} in float32"):
                proof_of(network, dialect, tmp_path)
            continue
        of_kernels = {}
        for condition in proof_of(network, dialect, tmp_path).conditions:
            of_kernels.setdefault(condition.runtime, condition.why)  # the first is about its kernels
        assert all("every partial sum is below 2^24" in of_kernels[runtime] for runtime in runtimes)


@pytest.mark.parametrize(("sums", "proven"), [(2**24 - 1, True), (2**24, False)])
def test_a_sum_of_2_to_the_24_in_the_head_is_refused_and_one_less_is_proven(sums, proven, tmp_path):
    """The largest partial sum of a linear layer on 8 values of -128 to 127: its bias leads up to the limit."""
    reached = 8 * 128 * 100
    layers = (
        Image("image", 8),
        networks.convolution(np.random.default_rng(0), "stem", 0, 8, 3),
        GlobalMax("max", 1),
        Linear(
            "fusion", 2, np.full((1, 8), 100, np.int8), np.array([sums - reached], np.int32), np.array([16], np.int8)
        ),
        Logits("hash", 3, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    assert network.accumulators[3].peak == sums
    for dialect in DIALECTS:
        if proven:
            assert proof_of(network, dialect, tmp_path).bounds[1].peak == sums
        else:
            with pytest.raises(CheckError, match=f"node 3_fusion: its sums reach {sums} in float32"):
                proof_of(network, dialect, tmp_path)


def test_no_name_of_a_node_hides_a_sum_of_2_to_the_24_behind_the_bound_of_another(tmp_path):
    """The logits' bound is always below 2^24: under the name of the linear layer it stood for that layer's."""
    random = np.random.default_rng(0)
    layers = (
        Image("image", 8),
        networks.convolution(random, "stem", 0, 8, 3),
        GlobalMax("max", 1),
        Linear("fusion", 2, np.full((1, 8), 100, np.int8), np.array([2**24], np.int32), np.array([16], np.int8)),
        Logits("hash", 3, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    model = onnx_from_network(network, "tensorrt", 20)
    (index,) = [index for index, found in enumerate(model.graph.node) if found.name == "4_hash"]
    node(model, "3_fusion").name = f"{model.graph.node[index].op_type}_{index}"  # what a node without a name is called
    node(model, "4_hash").name = ""
    space = integer_fingerprint(canonical_hash(network), Framing.parse(None))
    helper.set_model_props(model, {Metadata.FINGERPRINT: space, Metadata.DIALECT: "tensorrt"})
    with pytest.raises(CheckError, match=r"its sums reach \d+ in float32, exact below 2\^24 only"):
        prove(model, tmp_path, network)
    read = model_from_file(tmp_path / "model.onnx").graph.node
    assert len({found.name for found in read}) == len(read)


@pytest.mark.parametrize(("left_shift", "proven"), [(14, True), (15, False)])
def test_an_addition_at_shift_16_is_proven_up_to_where_the_fused_sum_leaves_float32(left_shift, proven, tmp_path):
    """2^23 for the zero point of the result, and 383 per side: with 255 alone, 2^15 would fit below 2^24."""
    layers = (
        Image("image", 8),
        networks.convolution(np.random.default_rng(0), "left", 0, 8, 3),
        networks.convolution(np.random.default_rng(1), "right", 0, 8, 3),
        Add("sum", 1, 2, left_shift, 0, 16),
        GlobalMax("max", 3),
        Logits("hash", 4, np.ones((1, 8), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    assert proof_of(network, "tensorrt", tmp_path)  # which adds the plain integers
    if proven:
        assert proof_of(network, "onnxruntime", tmp_path)
    else:
        with pytest.raises(
            CheckError, match=f"node 3_sum: its sums reach {(128 << 16) + 383 * (2**15 + 1)} in float32"
        ):
            proof_of(network, "onnxruntime", tmp_path)


@pytest.mark.parametrize(("weight", "free"), [(64, True), (65, False)])
def test_a_weight_of_65_needs_the_precision_option_and_one_of_64_does_not(weight, free, tmp_path):
    assert (2 * 255 * weight <= np.iinfo(np.int16).max) is free
    layers = (
        Image("image", 8),
        Convolution("stem", 0, np.full((1, 3, 1, 1), -weight, np.int8), np.zeros(1, np.int32), np.array([8], np.int8)),
        GlobalMax("max", 1),
        Logits("hash", 2, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    conditions = proof_of(networks.IntegerNetwork(layers), "onnxruntime", tmp_path).conditions
    (condition,) = [each for each in conditions if each.runtime == "ONNX Runtime, x86 without VNNI"]
    assert (condition.needs == "nothing") is free


def test_the_conditions_name_what_openvino_must_not_fuse_and_what_tensorrt_may(tmp_path):
    said = {dialect: prove(written(dialect), tmp_path).conditions for dialect in DIALECTS}
    rounds = [each for each in said["openvino"] if "Round" in each.needs]
    assert [each.why for each in rounds] == ["2 convolutions that feed an addition are rounded by a node of their own"]
    fused = [each for each in said["tensorrt"] if "fusion of Conv and Add" in each.needs]
    assert [each.why for each in fused] == ["1 additions of feature maps, 4_residual first"]
    assert not [each for each in said["onnxruntime"] if "fusion" in each.needs]
