"""Readers of the trunk: what each refuses, and what both dialects write of feature maps that are joined or pooled."""

import integer_networks as networks
import numpy as np
import pytest
from onnx import helper
from tampering import attribute, change, constant, give, give_input, insert_after, node, with_first, zero

from dmsh_export.prove.integer_from_onnx import integer_from_onnx
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_model.integer.layers import Concat, GlobalMax, Image, Logits, MaxPool
from dmsh_model.integer.network import canonical_hash
from dmsh_serving.errors import CheckError


def resized(count):
    return lambda array: np.resize(array, count)


def both(model, count):
    for name in ("1_stem.scale", "1_stem.weight_zero_point"):
        change(model, name, resized(count))


def add_image(model):
    again = helper.make_node("Transpose", ["image"], ["again"], name="again", perm=[0, 3, 1, 2])
    model.graph.node.insert(1, again)


REFUSED = {
    "a zero point of a dequantisation": (
        "onnxruntime", lambda m: give(m, "4_residual.left", 2, np.uint8(127)), "node 4_residual.left .*point is 127"),
    "a clip of what is clipped": (
        "onnxruntime", lambda m: insert_after(m, "2_depthwise.clip", "Clip", zero(m, np.uint8(100))),
        "node smuggled .*clips something else than the fresh result"),
    "the image twice": ("onnxruntime", add_image, "node again .*the image enters twice"),
    "fewer scales": ("onnxruntime", lambda m: change(m, "1_stem.scale", resized(7)), "1_stem .*one scale per output"),
    "more scales": ("onnxruntime", lambda m: change(m, "1_stem.scale", resized(9)), "1_stem .*one scale per output"),
    "more zero points": (
        "onnxruntime", lambda m: change(m, "1_stem.weight_zero_point", resized(9)), "1_stem .*one scale per output"),
    "more of both": ("onnxruntime", lambda m: both(m, 9), "1_stem .*one scale per output"),
    "fewer of both": ("onnxruntime", lambda m: both(m, 7), "1_stem .*one scale per output"),
    "more scales of dequantised weights": (
        "tensorrt", lambda m: change(m, "1_stem.scale", resized(9)), "1_stem.* one scale per output"),
    "more of both of dequantised weights": ("tensorrt", lambda m: both(m, 9), "1_stem.* one scale per output"),
    "fewer of both of dequantised weights": ("tensorrt", lambda m: both(m, 7), "1_stem.* one scale per output"),
    "fewer biases": ("tensorrt", lambda m: change(m, "1_stem.bias", resized(7)), "1_stem .*one bias per output"),
    "quantised twice": (
        "tensorrt", lambda m: insert_after(m, "3_grouped.dequantise", "QuantizeLinear", "2^0", "zero_point"),
        "node smuggled .*quantises something else"),
    "a vector quantised": (
        "tensorrt", lambda m: insert_after(m, "8_sum", "QuantizeLinear", "2^0", "zero_point"),
        "node smuggled .*quantises something else"),
    "something else moved": (
        "tensorrt", lambda m: give_input(m, "0_image.transpose", "2^0"), "0_image.transpose .*moves something else"),
    "the offset of something else": (
        "tensorrt", lambda m: give_input(m, "0_image", "0_image.cast"), "node 0_image .*subtracts from something else"),
    "a cast of something else": (
        "tensorrt", lambda m: give_input(m, "code.ones", "11_hash"), "node code.ones .*casts something else"),
    "a kernel that is not the weights'": (
        "onnxruntime", lambda m: attribute(m, "1_stem", "kernel_shape", [3, 2]), "1_stem .*kernel .3, 2. is not"),
    "another zero point of the result": (
        "onnxruntime", lambda m: give(m, "3_grouped", 7, np.uint8(127)), "node 3_grouped .*zero point is 127"),
    "another zero point of the input": (
        "onnxruntime", lambda m: give(m, "3_grouped", 2, np.uint8(127)), "node 3_grouped .*zero point is 127"),
    "another scale of the result": (
        "onnxruntime", lambda m: give(m, "3_grouped", 6, np.float32(2)), "node 3_grouped .*scale of its output is 2"),
    "half a scale": (
        "tensorrt", lambda m: give(m, "3_grouped.quantise", 1, np.float32(0.5)), "3_grouped.quantise .*scale is 0.5"),
    "weights that are computed": (
        "onnxruntime", lambda m: give(m, "3_grouped", 3, np.float32(1)), "node 3_grouped .*its weight is float32"),
    "a scale in a matrix": (
        "tensorrt", lambda m: give(m, "3_grouped.quantise", 1, np.ones((1, 1), np.float32)), "not that of one number"),
    "weights whose bytes do not fill their shape": (
        "onnxruntime", lambda m: constant(m, "3_grouped.weight").dims.__setitem__(0, 7), "its weight cannot be read"),
    "a negative shift": (
        "onnxruntime", lambda m: change(m, "1_stem.scale", with_first(2.0)), "the shift -1 of 1_stem is not 0 to 16"),
    "a clip to what is not finite": (
        "tensorrt", lambda m: give(m, "2_depthwise.clip", 2, np.float32(np.inf)), "2_depthwise.clip .*inf is no int"),
    "a clip that leaves out 0": (
        "tensorrt", lambda m: give(m, "2_depthwise.clip", 1, np.float32(1)), "2_depthwise.clip .*0 must be inside"),
    "a clip beyond 8 bits": (
        "tensorrt", lambda m: give(m, "2_depthwise.clip", 2, np.float32(128)), "2_depthwise.clip .*must hold it"),
    "a clip below 8 bits": (
        "tensorrt", lambda m: give(m, "2_depthwise.clip", 1, np.float32(-129)), "2_depthwise.clip .*must hold it"),
    "maps joined before they are 8-bit": (
        "onnxruntime", lambda m: give_input(m, "9_scales", "6_wide.real"), "9_scales .*joins feature maps"),
    "a sum of what is no layer": (
        "tensorrt", lambda m: give_input(m, "4_residual", "2^0"), "node 4_residual .*does not hold the integers"),
    "a pool of what is multiplied": (
        "tensorrt", lambda m: give_input(m, "5_pool", "4_residual.right"), "node 5_pool .*is multiplied by 2.2"),
    "a convolution of floats": (
        "onnxruntime", lambda m: give_input(m, "3_grouped", "8_sum"), "node 3_grouped .*is not the 8-bit tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_exact_is_refused_by_its_node(what):
    dialect, tamper, why = REFUSED[what]
    model = onnx_from_network(networks.network(), dialect, 20)
    tamper(model)
    with pytest.raises(CheckError, match=f"(?s){why}"):
        integer_from_onnx(model)


@pytest.mark.parametrize("dilation", [(1, 1), (1, 2), (2, 1)])
def test_a_clip_after_the_pool_is_one_before_it_unless_the_pool_has_holes(dilation):
    layers = (
        Image("image", 12),
        networks.convolution(np.random.default_rng(0), "stem", 0, 8, 3, low=0),
        MaxPool("pool", 1, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1)),
        GlobalMax("max", 2),
        Logits("hash", 3, np.ones((1, 8), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    model = onnx_from_network(network, "onnxruntime", 20)
    assert node(model, "2_pool.clip").input[0] == "2_pool"  # as it is written, for speed
    attribute(model, "2_pool", "dilations", list(dilation))
    if dilation == (1, 1):
        assert canonical_hash(integer_from_onnx(model).network) == canonical_hash(network)
    else:
        with pytest.raises(CheckError, match="clips something else"):
            integer_from_onnx(model)


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
def test_feature_maps_that_are_joined_are_read_back(dialect):
    random = np.random.default_rng(0)
    layers = (
        Image("image", 12),
        networks.convolution(random, "one", 0, 8, 3, low=0),
        networks.convolution(random, "two", 0, 4, 3),
        Concat("both", (2, 1)),
        networks.convolution(random, "mixed", 3, 4, 12, shift=0),  # the least that is allowed
        GlobalMax("max", 4),
        Logits("hash", 5, np.ones((1, 4), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    read = integer_from_onnx(onnx_from_network(network, dialect, 20)).network
    assert canonical_hash(read) == canonical_hash(network)


def test_a_clip_after_a_pool_is_refused_if_another_pool_reads_the_same_layer():
    layers = (
        Image("image", 12),
        networks.convolution(np.random.default_rng(0), "stem", 0, 8, 3),
        MaxPool("one", 1, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1)),
        MaxPool("other", 1, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1)),
        Concat("both", (2, 3)),
        GlobalMax("max", 4),
        Logits("hash", 5, np.ones((1, 16), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    network = networks.IntegerNetwork(layers)
    model = onnx_from_network(network, "onnxruntime", 20)
    assert canonical_hash(integer_from_onnx(model).network) == canonical_hash(network)
    insert_after(model, "2_one", "Clip", zero(model, np.uint8(100)))
    with pytest.raises(CheckError, match=r"node smuggled .*clips something else"):
        integer_from_onnx(model)
