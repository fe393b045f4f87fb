"""Readers of the head: what each refuses."""

import integer_networks as networks
import numpy as np
import pytest
from onnx import numpy_helper
from tampering import change, give, give_input, insert_after, node, with_first

from dmsh_export.prove.integer_from_onnx import integer_from_onnx
from dmsh_export.to_onnx.dialects import onnx_from_network
from dmsh_serving.errors import CheckError


def axes(model, name, values):
    give(model, name, 1, np.array(values, np.int64))


def without_code(model):
    del model.graph.node[-4:]


REFUSED = {
    "another axis": (lambda m: axes(m, "7_max", [1, 3]), "node 7_max .*does not reduce a feature map"),
    "a later axis": (lambda m: axes(m, "8_sum", [3, 2]), "node 8_sum .*does not reduce a feature map"),
    "one axis": (lambda m: axes(m, "8_sum", [2]), "node 8_sum .*does not reduce a feature map"),
    "a bias for all": (lambda m: change(m, "10_fusion.bias", lambda b: b[:1]), "10_fusion .*one bias per output"),
    "a weight above 8 bits": (lambda m: change(m, "10_fusion.weight", with_first(128)), "weight 128 is beyond int8"),
    "a weight below 8 bits": (lambda m: change(m, "10_fusion.weight", with_first(-129)), "weight -129 is beyond int8"),
    "a bias above 32 bits": (lambda m: change(m, "10_fusion.bias", with_first(2.0**31)), "2.14748365e.09 is beyond"),
    "a weight that is not finite": (lambda m: change(m, "10_fusion.weight", with_first(np.inf)), "inf is no integer"),
    "a bias that is not finite": (lambda m: change(m, "10_fusion.bias", with_first(np.nan)), "nan is no integer"),
    "factors of some": (lambda m: change(m, "10_fusion.factor", lambda f: f[:4]), "shift .*has the shape .4."),
    "factors of more axes": (
        lambda m: change(m, "10_fusion.factor", lambda f: f[None]), "10_fusion.shift .*has the shape .1, 16."),
    "several factors of a sum": (
        lambda m: give(m, "8_sum.shift", 1, np.full(8, 0.5, np.float32)), "8_sum.shift .*not that of one number"),
    "a factor of what is rounded": (
        lambda m: insert_after(m, "8_sum.round", "Mul", "2^0"), "node smuggled .*multiplies something else"),
    "a factor of the logits": (
        lambda m: give_input(m, "code.above", "11_hash"), "node code.above .*thresholds something else"),
    "a factor of a constant": (lambda m: give_input(m, "8_sum.shift", "2^0"), "shift .*multiplies something else"),
    "a rounding of what is rounded": (
        lambda m: insert_after(m, "8_sum.round", "Round"), "node smuggled .*rounds something else"),
    "a rounding of what is clipped": (
        lambda m: insert_after(m, "8_sum.clip", "Round"), "node smuggled .*rounds something else"),
    "a packing of what are no bits": (
        lambda m: give_input(m, "code.packed", "code.above"), "code.packed .*something else than the bits"),
    "a clip without its upper bound, which nothing else sets": (
        lambda m: node(m, "10_fusion.clip").input.pop(), "node 10_fusion.clip .*clips something else"),
    "a clip without its lower bound": (
        lambda m: node(m, "8_sum.clip").input.__setitem__(1, ""), "node 8_sum.clip .*clips something else"),
    "no code": (without_code, "are not those of an integer network"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_exact_is_refused_by_its_node(what, dialect):
    tamper, why = REFUSED[what]
    model = onnx_from_network(networks.network(), dialect, 20)
    tamper(model)
    with pytest.raises(CheckError, match=f"(?s){why}"):
        integer_from_onnx(model)


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 64])
def test_the_packing_is_numpys_for_any_number_of_bits(bits):
    network = networks.IntegerNetwork((*networks.network().layers[:-1], logits(bits)))
    model = onnx_from_network(network, "onnxruntime", 20)
    assert integer_from_onnx(model).network.layers[-1].bias.shape == (bits,)
    (packing,) = [tensor for tensor in model.graph.initializer if tensor.name == "code.packing"]
    ones = np.eye(bits, dtype=np.uint8)
    assert np.array_equal(ones @ numpy_helper.to_array(packing), np.packbits(ones, axis=1))


def logits(bits):
    weight = np.random.default_rng(0).integers(-9, 9, (bits, 16)).astype(np.int8)
    return networks.Logits("hash", 10, weight, np.zeros(bits, np.int32), np.zeros(bits, np.int8))


def test_a_factor_of_one_number_counts_for_every_output():
    network = networks.network()
    model = onnx_from_network(network, "onnxruntime", 20)
    change(model, "10_fusion.factor", lambda f: np.float32(2.0**-7))
    fusion = integer_from_onnx(model).network.layers[10]
    assert fusion.shift.tolist() == [7] * 16
