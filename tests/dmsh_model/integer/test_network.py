"""The integer network: exact whatever the batch and threads, checked when built, hashed by its integers alone."""

import dataclasses

import integer_networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_model.config import HashConfig
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import Convolution, GlobalMax, GlobalSum, Image, Logits, MaxPool
from dmsh_model.integer.network import IntegerNetwork, canonical_hash
from dmsh_model.integer.reference import IntegerDMSH, features, head, head_logits, outputs, run
from dmsh_serving.errors import InputError

NETWORK = integer_networks.network()


def changed(index, network=NETWORK, **fields):
    """The network's layers with fields of one replaced."""
    layers = list(network.layers)
    layers[index] = dataclasses.replace(layers[index], **fields)
    return tuple(layers)


@pytest.mark.parametrize("seed", range(4))
def test_every_layer_computes_what_the_slow_oracle_in_whole_numbers_computes(seed):
    network = integer_networks.network(seed)
    images = integer_networks.images(3, seed=seed)
    images[0], images[1] = 0, 255
    expected = integer_networks.oracle(network, images)
    found = [value.numpy() for _, value in outputs(network, images)]
    assert len(found) == len(expected)
    for layer, theirs, ours in zip(network.layers, expected, found, strict=True):
        assert np.array_equal(ours, theirs), layer.name
        assert ours.dtype == (np.int64 if isinstance(layer, Logits) else np.float32)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 2))
@settings(max_examples=20)
def test_a_logit_depends_on_neither_batch_nor_threads_nor_order(seed, batch, threads):
    model = integer_networks.model(seed % 7)
    images = integer_networks.images(9, seed=seed)
    expected = model.logits(images)
    order = np.random.default_rng(seed).permutation(9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.array_equal(model.logits(images[order], batch_size=batch), expected[order])
    finally:
        torch.set_num_threads(before)


def test_another_framing_is_another_code_space():
    model = integer_networks.model()
    padded = IntegerDMSH(dataclasses.replace(model.config, crop="pad"), model.network)
    assert padded.fingerprint != model.fingerprint


def test_accumulators_that_float32_would_round_are_exact_too():
    """2^23 + 1 times 2 and a bias: odd numbers above 2^24, of which float32 holds none."""
    channels = 1200
    layers = (
        Image("image", 1),
        Convolution(
            "widen",
            0,
            np.full((channels, 3, 1, 1), 127, np.int8),
            np.zeros(channels, np.int32),
            np.full(channels, 8, np.int8),
        ),
        Convolution(
            "deep",
            1,
            np.full((2, channels, 1, 1), 127, np.int8),
            np.array([1, -1], np.int32),
            np.full(2, 16, np.int8),
        ),
        GlobalSum("sum", 2, 0),
        Logits("hash", 3, np.eye(2, dtype=np.int8), np.zeros(2, np.int32), np.zeros(2, np.int8)),
    )
    network = IntegerNetwork(layers)
    bounds = network.accumulators[2]
    assert bounds.peak > FLOAT32_LIMIT
    seen = {}
    image = np.full((1, 1, 1, 3), 255, np.uint8)
    for _ in outputs(network, image, on_accumulator=lambda index, values: seen.setdefault(index, values)):
        pass
    assert seen[2].flatten().tolist() == [1200 * 127 * 127 + 1, 1200 * 127 * 127 - 1]
    assert (seen[2].flatten().numpy() <= bounds.highest).all()


@pytest.mark.parametrize(("accumulator", "shift", "expected"), [
    (1, 1, 0), (3, 1, 2), (5, 1, 2), (-1, 1, 0), (-3, 1, -2), (-5, 1, -2), (7, 2, 2), (2**20, 4, 127),
    (-(2**20), 4, -128),
])  # fmt: skip
def test_a_half_is_rounded_to_even_and_the_result_saturates(accumulator, shift, expected):
    layers = (
        Image("image", 1),
        Convolution(
            "only", 0, np.zeros((1, 3, 1, 1), np.int8), np.array([accumulator], np.int32), np.array([shift], np.int8)
        ),
        GlobalSum("sum", 1, 0),
        Logits("hash", 2, np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    assert run(IntegerNetwork(layers), np.zeros((1, 1, 1, 3), np.uint8)).item() == expected


def test_the_stated_bounds_hold_and_are_reached():
    """An image built from the signs of the weights drives the first layer to its bound."""
    stem = NETWORK.layers[1]
    bounds = NETWORK.accumulators[1]
    seen = {}
    pixels = np.zeros((1, integer_networks.SIZE, integer_networks.SIZE, 3), np.uint8)
    rows, columns = slice(3, 6), slice(3, 6)
    pixels[0, rows, columns] = np.where(stem.weight[0] > 0, 255, 0).transpose(1, 2, 0)
    for _ in outputs(NETWORK, pixels, on_accumulator=lambda index, values: seen.setdefault(index, values)):
        pass
    assert seen[1][0, 0].max().item() == bounds.highest[0]
    for index, values in seen.items():
        limits = NETWORK.accumulators[index]
        axes = (0, 2, 3) if values.ndim == 4 else (0,)
        assert (values.amax(axes).numpy() <= limits.highest).all()
        assert (values.amin(axes).numpy() >= limits.lowest).all()


def test_the_hash_names_the_integers_and_not_the_names_or_the_order_of_independent_layers():
    renamed = IntegerNetwork(tuple(dataclasses.replace(layer, name=f"x{i}") for i, layer in enumerate(NETWORK.layers)))
    assert canonical_hash(renamed) == canonical_hash(NETWORK)
    layers = list(NETWORK.layers)
    layers[7], layers[8] = layers[8], layers[7]
    layers[9] = dataclasses.replace(layers[9], parts=(7, 8))
    assert canonical_hash(IntegerNetwork(tuple(layers))) == canonical_hash(NETWORK)
    swapped = changed(4, left=1, right=3, left_shift=2, right_shift=0)
    assert canonical_hash(IntegerNetwork(swapped)) == canonical_hash(NETWORK)


def flipped(array):
    array = array.copy()
    array.flat[0] ^= 1
    return array


@pytest.mark.parametrize(
    ("index", "fields"),
    [
        (1, {"weight": flipped(NETWORK.layers[1].weight)}),
        (1, {"bias": flipped(NETWORK.layers[1].bias)}),
        (1, {"shift": flipped(NETWORK.layers[1].shift)}),
        (2, {"high": 97}),
        (1, {"low": -128}),
        (4, {"left_shift": 2, "right_shift": 0}),
        (4, {"left": 1, "right": 3}),
        (8, {"shift": 5}),
        (9, {"parts": (8, 8, 7)}),
        (11, {"exponent": flipped(NETWORK.layers[11].exponent)}),
    ],
)
def test_any_changed_integer_changes_the_hash(index, fields):
    layers = changed(index, **fields)
    if index == 9:
        wide = np.concatenate([NETWORK.layers[10].weight, np.zeros((16, 8), np.int8)], 1)
        layers = (*layers[:10], dataclasses.replace(layers[10], weight=wide), layers[11])
    assert canonical_hash(IntegerNetwork(layers)) != canonical_hash(NETWORK)


@pytest.mark.parametrize(
    ("index", "fields", "message"),
    [
        (1, {"source": 1}, "its inputs [1] are not earlier layers"),
        (1, {"weight": NETWORK.layers[1].weight.astype(np.int16)}, "weights are int16"),
        (1, {"weight": np.full_like(NETWORK.layers[1].weight, -128)}, "216 of 216 weights are -128"),
        (10, {"weight": np.full_like(NETWORK.layers[10].weight, -128)}, "192 of 192 weights are -128"),
        (1, {"bias": NETWORK.layers[1].bias.astype(np.float32)}, "bias is float32"),
        (1, {"shift": NETWORK.layers[1].shift + np.int8(20)}, "must be 0 to 16"),
        (1, {"low": 1}, "low = 1 must be -128 to 0"),
        (2, {"high": 128}, "high = 128 must be 0 to 127"),
        (1, {"stride": (0, 1)}, "does not fit"),
        (1, {"padding": (3, 0, 0, 0)}, "would see nothing but padding"),
        (2, {"groups": 3}, "in 3 groups for 8 channels"),
        (4, {"left_shift": 1}, "smaller left shift = 1"),
        (4, {"left_shift": -1}, "shift"),
        (4, {"right": 2, "left": 0}, "cannot add"),
        (5, {"kernel": (40, 40)}, "does not fit"),
        (9, {"parts": (8, 6)}, "cannot concatenate"),
        (9, {"parts": (8,)}, "cannot concatenate"),
        (10, {"bias": np.full(16, 2**31 - 1, np.int32)}, "an accumulator could reach 2147"),
        (11, {"bias": np.full(11, 2**24, np.int32)}, "16777216 or more is out of bounds"),
        (11, {"exponent": np.full(11, 127, np.int8)}, "exponent = 127"),
        (8, {"source": 9}, "are not earlier layers"),
        (10, {"source": 7}, "for an input of [4]"),
    ],
)
def test_a_network_that_is_no_network_is_refused_by_layer(index, fields, message):
    with pytest.raises(InputError) as error:
        IntegerNetwork(changed(index, **fields))
    assert message in str(error.value)
    assert f"layer {index}" in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "seen"),
    [
        ((3, 3), (4, 4), (4, 4, 4, 4), True),  # the middle of each window is a position
        ((2, 1), (4, 1), (4, 0, 4, 0), False),
        ((2, 1), (3, 1), (1, 0, 2, 0), True),
        ((1, 2), (1, 5), (0, 4, 0, 4), False),
        ((1, 2), (1, 3), (0, 3, 0, 0), True),
        ((1, 3), (1, 2**60), (0, 2**60, 0, 2**60), True),
    ],
)
def test_a_convolution_whose_window_sees_nothing_but_padding_is_refused(kernel, dilation, padding, seen):
    """OpenVINO's kernels get such windows wrong; here the map has 3 x 3 positions."""
    random = np.random.default_rng(0)
    layers = (
        Image("image", 3),
        Convolution(
            "stem", 0, random.integers(-9, 9, (4, 3, *kernel), dtype=np.int8), np.zeros(4, np.int32),
            np.zeros(4, np.int8), padding=padding, dilation=dilation,
        ),
        GlobalMax("max", 1),
        Logits("hash", 2, np.ones((1, 4), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )  # fmt: skip
    if seen:
        assert IntegerNetwork(layers).shapes[1][0] == 4
    else:
        with pytest.raises(InputError, match=r"layer 1 .*padding .* would see nothing but padding"):
            IntegerNetwork(layers)


def test_a_max_pool_that_could_see_nothing_but_padding_is_refused():
    """Kernel 2, dilation 3 and padding 1 on 2 positions: taps at -1 and 2, so -128 where the range begins at 0."""
    random = np.random.default_rng(0)
    layers = (
        Image("image", 4),
        integer_networks.convolution(random, "stem", 0, 4, 3, low=0),
        MaxPool("pool", 1, (2, 2), (1, 1), (1, 1, 1, 1), (3, 3)),
        GlobalMax("max", 2),
        Logits("hash", 3, np.ones((1, 4), np.int8), np.zeros(1, np.int32), np.zeros(1, np.int8)),
    )
    with pytest.raises(InputError, match=r"layer 2 .*dilation \[3, 3\]: a window could see nothing but padding"):
        IntegerNetwork(layers)


def test_a_layer_that_nothing_uses_is_refused():
    layers = (*NETWORK.layers[:-1], dataclasses.replace(NETWORK.layers[1], name="idle"), NETWORK.layers[-1])
    with pytest.raises(InputError, match=r"layer 11 \(Convolution idle\): no layer uses it"):
        IntegerNetwork(layers)


def test_images_of_another_size_or_type_are_refused():
    model = integer_networks.model()
    with pytest.raises(InputError, match="images must be uint8"):
        model.logits(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="images must be uint8"):
        model.logits(np.zeros((1, 17, 17, 3), np.float32))


def test_a_config_of_other_bits_is_refused():
    with pytest.raises(InputError, match="12 bits"):
        IntegerDMSH(HashConfig("vgg_small", 12, integer_networks.SIZE), NETWORK)


def test_a_code_is_the_sign_of_the_exact_logits():
    model = integer_networks.model()
    images = integer_networks.images(5)
    accumulators = integer_networks.oracle(model.network, images)[-1]
    assert np.array_equal(model.codes(images), np.packbits(accumulators > 0, axis=1))
    exponents = model.network.layers[-1].exponent.astype(np.int64)
    assert np.array_equal(model.logits(images).astype(np.float64), accumulators * 2.0**exponents)


def test_the_head_gives_the_logits_of_an_image_from_its_pooled_features():
    model, images = integer_networks.model(), integer_networks.images(5)
    assert [type(model.network.layers[index]).__name__ for index in head(model.network)] == ["Linear", "Logits"]
    pooled = features(model.network, images)
    assert (pooled.dtype, pooled.shape) == (np.int8, (5, 12))
    assert np.array_equal(head_logits(model.network, pooled), model.logits(images))
