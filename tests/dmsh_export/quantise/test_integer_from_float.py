"""Every supported backbone becomes integers that follow the float network; what has no integer form is refused."""

import functools
import weakref

import integer_networks
import numpy as np
import pytest
import torch
from torch import nn

from dmsh_export.compare.generated import generated_images
from dmsh_export.quantise import float_graph as floats
from dmsh_export.quantise.calibration import Calibration
from dmsh_export.quantise.float_graph import FloatGraph, FloatLayer
from dmsh_export.quantise.float_graph_from_model import float_graph
from dmsh_export.quantise.integer_from_float import integer_from_float
from dmsh_export.quantise.scales import ScaleOptions, added_together, chosen_scales
from dmsh_model.config import HashConfig
from dmsh_model.integer import reference
from dmsh_model.integer.bounds import FLOAT32_LIMIT
from dmsh_model.integer.layers import HIGHEST, MAX_SHIFT, Add, Convolution
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError

BACKBONES = ["vgg_small", "vgg11_bn", "vgg19", "resnet18", "resnet50", "efficientnet_lite0"]
# Zero padding of the normalised image is then padding with 128: the two networks are one function.
GREY = (128 / 255,) * 3


def network(backbone, size=48, **fields):
    """Random weights, and BN statistics far from the identity."""
    torch.manual_seed(3)
    defaults = {"lateral_features": 32, "fusion_features": 48, "bits": 32, "mean": GREY}
    model = DMSH(HashConfig(backbone, image_size=size, **{**defaults, **fields})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


@functools.cache  # many tests look at one network
def calibrated(backbone, size=48):
    model = network(backbone, size)
    return model, calibration_of(model)


def calibration_of(model):
    calibration = Calibration(float_graph(model))
    calibration.add(generated_images(12, model.config.image_size, seed=1))
    return calibration


def converted(calibration, policy="mse", equalisation=0.0, corrected=False):
    graph, scales = calibration.graph, chosen_scales(calibration, ScaleOptions(policy, equalisation))
    return graph, integer_from_float(graph, scales, calibration if corrected else None)


def signal_to_noise(expected, found):
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


@pytest.mark.parametrize("backbone", ["vgg_small", "resnet18", "tf_efficientnet_lite0", "resnet26d", "resnetv2_50"])
def test_the_float_graph_computes_the_networks_own_logits(backbone):
    model = network(backbone, 64)
    images = generated_images(3, 64)
    *_, (_, logits) = floats.outputs(float_graph(model), images)
    assert signal_to_noise(model.logits(images), logits.numpy()) > 80


@pytest.mark.parametrize("backbone", ["vgg_small", "resnetv2_50"])  # in the second, some batch norms cannot be folded
def test_no_value_of_a_float_graph_asks_for_a_gradient(backbone):
    graph = float_graph(network(backbone, 64))
    affine = [layer.operation for layer in graph.layers if isinstance(layer.operation, floats.Affine)]
    assert affine
    assert not any(value.requires_grad for each in affine for value in (each.weight, each.bias))


@pytest.mark.parametrize("backbone", ["vgg_small", "resnet18", "tf_efficientnet_lite0"])
def test_a_centred_graph_pads_with_the_mean_as_the_network_does(backbone):
    model = network(backbone, 64, mean=(0.1, 0.5, 0.3))
    images = generated_images(3, 64)
    found = {}
    for centred in (False, True):
        *_, (_, logits) = floats.outputs(float_graph(model, centred=centred), images)
        found[centred] = signal_to_noise(model.logits(images), logits.numpy())
    assert found[True] > 80
    assert found[False] < found[True] - 20


@pytest.mark.parametrize("mean", [(0.1, 0.5, 0.9), (0.0, 1.0, 128 / 255)])
def test_the_centring_layer_gives_0_for_the_mean_and_clips_no_pixel(mean):
    model = network("vgg_small", mean=mean)
    graph = float_graph(model, centred=True)
    calibration = Calibration(graph)
    calibration.add(generated_images(12, 48))
    found = integer_from_float(graph, chosen_scales(calibration, ScaleOptions("mse", 0)))
    ramp = np.zeros((256, 48, 48, 3), np.uint8)
    ramp += np.arange(256, dtype=np.uint8)[:, None, None, None]
    steps = next(value for index, value in reference.outputs(found.network, ramp) if index == 1)[:, :, 0, 0]
    pixels, centre = torch.arange(256.0).double().view(-1, 1), torch.tensor(mean).double() * 255
    worth = found.scales[1]
    assert float(((steps * worth) - (pixels - centre)).abs().max()) <= float(worth.max()) * 0.51
    assert steps[centre.round().long(), [0, 1, 2]].tolist() == [0, 0, 0]
    assert float(worth.max()) < 255 / 127 + 0.05  # as fine as 8 bits allow


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_integer_network_follows_the_float_network_whatever_the_batch(backbone):
    model, calibration = calibrated(backbone)
    _, found = converted(calibration)
    integer = IntegerDMSH(model.config, found.network)
    images = generated_images(4, 48, seed=2)
    logits = integer.logits(images)
    assert signal_to_noise(model.logits(images), logits) > 18
    bounds = [found.network.accumulators[index] for index in range(len(found.network.layers))]
    assert max(bound.peak for bound in bounds if bound) < FLOAT32_LIMIT
    assert np.array_equal(integer.logits(images[::-1], batch_size=1)[::-1], logits)


@pytest.mark.parametrize("backbone", ["vgg_small", "resnet18", "efficientnet_lite0"])
def test_every_layer_of_a_converted_network_agrees_with_the_slow_oracle(backbone):
    _, found = converted(calibration_of(network(backbone, size=33)))
    images = generated_images(2, 33, seed=2)
    for layer, expected, (_, value) in zip(
        found.network.layers,
        integer_networks.oracle(found.network, images),
        reference.outputs(found.network, images),
        strict=True,
    ):
        assert np.array_equal(value.numpy(), expected), layer.name


@pytest.mark.parametrize(
    "fields",
    [
        {"pooling": "max"},
        {"lateral_activation": "relu"},
        {"pooling": "max", "lateral_activation": "relu"},
        {"fusion_activation": "none"},
        {"taps": (4,)},
        {"bits": 1},
    ],
)
def test_every_head_that_is_made_of_relus_has_an_integer_form(fields):
    model = network("vgg_small", **fields)
    _, found = converted(calibration_of(model))
    images = generated_images(6, 48, seed=2)
    assert signal_to_noise(model.logits(images), IntegerDMSH(model.config, found.network).logits(images)) > 18


@pytest.mark.parametrize(("policy", "equalisation", "corrected"), [
    ("max", 0, False), ("percentile", 0.5, True), ("mse", 1, True),
])  # fmt: skip
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_every_way_to_choose_the_integers_follows_the_float_network(backbone, policy, equalisation, corrected):
    model, calibration = calibrated(backbone)
    _, found = converted(calibration, policy, equalisation, corrected)
    images = generated_images(6, 48, seed=2)
    assert signal_to_noise(model.logits(images), IntegerDMSH(model.config, found.network).logits(images)) > 15


def test_the_max_policy_clips_no_value_of_any_tensor_and_the_tensors_of_a_residual_are_no_exception():
    calibration = calibration_of(network("resnet18"))
    scales = chosen_scales(calibration, ScaleOptions("max", 0))
    assert added_together(calibration.graph)
    for statistics, scale in zip(calibration.tensors, scales, strict=True):
        assert bool((statistics.largest <= HIGHEST * scale * (1 + 1e-9)).all())
    others = chosen_scales(calibration, ScaleOptions("percentile", 0))
    assert sum(bool((other < scale).all()) for other, scale in zip(others, scales, strict=True)) > len(scales) // 2


def test_a_layer_whose_sums_could_reach_2_to_the_24_gives_up_a_bit_of_its_weights():
    # 3 x 24 x 24 equal weights: at 120 each, sums reach 26.5 million, which is below 2^25.
    graph = FloatGraph(
        (
            FloatLayer("image", floats.Image(24), ()),
            FloatLayer(
                "wide", floats.Affine(torch.full((1, 3, 24, 24), 120 / 128).double(), torch.zeros(1).double()), (0,)
            ),
            FloatLayer("pooled", floats.GlobalMax(), (1,)),
            FloatLayer("logits", floats.Affine(torch.ones(1, 1).double(), torch.zeros(1).double()), (2,)),
        ),
        ((3, 24, 24), (1, 1, 1), (1,), (1,)),
    )
    scales = tuple(torch.ones(shape[0]).double() for shape in graph.shapes)
    network = integer_from_float(graph, scales).network
    assert FLOAT32_LIMIT // 2 < network.accumulators[1].peak < FLOAT32_LIMIT
    assert (network.layers[1].weight == 60).all()


def of_one_weight(weight):
    """A network whose first layer multiplies each channel by ``weight``, all steps 1."""
    layers = (
        FloatLayer("image", floats.Image(8), ()),
        FloatLayer(
            "times", floats.Affine(torch.diag(weight).view(3, 3, 1, 1), torch.tensor([0.5, -3, 0]).double()), (0,)
        ),
        FloatLayer("pooled", floats.GlobalMax(), (1,)),
        FloatLayer("logits", floats.Affine(torch.eye(3).double(), torch.zeros(3).double()), (2,)),
    )
    graph = FloatGraph(layers, ((3, 8, 8), (3, 8, 8), (3,), (3,)))
    return integer_from_float(graph, tuple(torch.ones(3).double() for _ in layers)).network.layers[1]


def test_a_weight_has_as_many_fractional_bits_as_fit_from_none_to_the_most_that_a_shift_may_be():
    layer = of_one_weight(torch.tensor([100, 1.5, 1e-12]).double())
    assert layer.shift.tolist() == [0, 6, MAX_SHIFT]
    assert np.diagonal(layer.weight[:, :, 0, 0]).tolist() == [100, 96, 0]
    assert layer.bias.tolist() == [0, -3 << 6, 0]  # the bias has as many; a half is rounded to even


@pytest.mark.parametrize(("size", "is_exact"), [(362, True), (363, False)])
def test_a_mean_of_so_many_pixels_that_its_sum_is_not_exact_is_refused(size, is_exact):
    layers = (
        FloatLayer("image", floats.Image(size), ()),
        FloatLayer("pooled", floats.GlobalMean(), (0,)),
        FloatLayer("logits", floats.Affine(torch.eye(3).double(), torch.zeros(3).double()), (1,)),
    )
    graph, steps = FloatGraph(layers, ((3, size, size), (3,), (3,))), tuple(torch.ones(3).double() for _ in layers)
    if is_exact:
        assert integer_from_float(graph, steps).network.accumulators[1].peak == 128 * 362**2 < FLOAT32_LIMIT
    else:
        with pytest.raises(
            InputError, match="layer pooled: its sum over all pixels can reach 16,866,432, and is exact"
        ):
            integer_from_float(graph, steps)


def test_bias_correction_moves_the_mean_of_a_layer_towards_the_float_networks():
    _, calibration = calibrated("efficientnet_lite0")
    errors = {}
    for corrected in (False, True):
        graph, found = converted(calibration, corrected=corrected)
        images = generated_images(12, 48, seed=1)
        for (index, wanted), (_, steps) in zip(
            floats.outputs(graph, images), reference.outputs(found.network, images), strict=True
        ):
            if index == 1:
                value = steps.double() * found.scales[index].view(1, -1, 1, 1)
                errors[corrected] = float((value.mean((0, 2, 3)) - wanted.double().mean((0, 2, 3))).abs().mean())
    assert errors[True] < errors[False]


def test_tensors_that_are_added_share_a_unit():
    graph, found = converted(calibrated("resnet18")[1])
    assert len(added_together(graph)) == 4
    for index, layer in enumerate(found.network.layers):
        if isinstance(layer, Add):
            left, right = (float(found.scales[source][0]) for source in graph.layers[index].inputs)
            assert np.log2(left / right) == pytest.approx(layer.left_shift - layer.right_shift, abs=1e-9)
            assert float(found.scales[index][0]) == pytest.approx(min(left, right) * 2**layer.shift)


def test_relu6_saturates_at_six():
    graph, found = converted(calibrated("efficientnet_lite0")[1], equalisation=1)
    for index, layer in enumerate(graph.layers):
        if layer.high == 6:
            integer = found.network.layers[index]
            assert isinstance(integer, Convolution)
            assert integer.low == 0
            assert float((integer.high * found.scales[index]).max()) <= 6 + 1e-9


@pytest.mark.parametrize(
    ("backbone", "node", "operation"),
    [
        ("efficientnet_b0", "bn1", "SiLU"),
        ("convnext_atto", "permute", "permute"),
        ("seresnet18", "mean", "mean"),
        ("mobilenetv3_small_050", "act1", "Hardswish"),
    ],
)
def test_a_backbone_with_another_operator_is_refused_by_node_and_operator(backbone, node, operation):
    with pytest.raises(InputError) as error:
        float_graph(DMSH(HashConfig(backbone, image_size=64)))
    assert f"backbone {backbone} has no integer form: node {node} is {operation}, supported are" in str(error.value)


def test_a_backbone_that_decides_by_its_values_is_refused_with_the_reason():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)

        def forward(self, image):
            return [self.conv(image if image.sum() > 0 else -image)]

    model = network("vgg_small", taps=(2,))
    model.backbone = Deciding().eval()
    with pytest.raises(InputError, match=r"backbone vgg_small has no integer form: .*control flow"):
        float_graph(model)


def test_an_average_over_windows_that_hang_over_the_edge_is_refused():
    with pytest.raises(InputError, match=r"node layer4\.0\.downsample\.0 is AvgPool2d with partial windows on 3 x 3"):
        float_graph(network("resnet26d", 48))


@pytest.mark.parametrize(
    "average", [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, divisor_override=3)]
)
def test_an_average_that_divides_by_another_number_than_its_windows_size_is_refused(average):
    model = network("vgg_small", taps=(2,))
    model.backbone = nn.Sequential(nn.Conv2d(3, 64, 3), average).eval()
    with pytest.raises(InputError, match="AvgPool2d with partial windows"):
        float_graph(model)


def test_windows_may_differ_in_height_and_width():
    model = network("vgg_small", taps=(2,))
    model.backbone = nn.Sequential(
        nn.Conv2d(3, 64, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1)),
        nn.AvgPool2d((1, 2), (2, 1)),
    ).eval()
    model.backbone.register_forward_hook(lambda module, inputs, feature: [feature])
    images = generated_images(3, 48)
    *_, (_, logits) = floats.outputs(float_graph(model), images)
    assert signal_to_noise(model.logits(images), logits.numpy()) > 80


def test_feature_maps_are_joined_by_channel_and_by_no_other_axis():
    class Joined(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.conv, self.axis = nn.Conv2d(3, 32, 3), axis

        def forward(self, image):
            found = self.conv(image)
            return [torch.cat([found, torch.relu(found)], self.axis)]

    images = generated_images(3, 48)
    model = network("vgg_small", taps=(2,))
    model.backbone = Joined(1).eval()
    *_, (_, logits) = floats.outputs(float_graph(model), images)
    assert signal_to_noise(model.logits(images), logits.numpy()) > 80
    model.backbone = Joined(2).eval()
    with pytest.raises(InputError, match="cat"):
        float_graph(model)


def test_a_tanh_in_the_head_is_refused():
    with pytest.raises(InputError, match="node fusion is Tanh"):
        float_graph(network("vgg_small", fusion_activation="tanh"))


def test_what_is_used_both_before_and_after_its_relu_is_not_clipped_for_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)

        def forward(self, image):
            raw = self.conv(image)
            return [torch.relu(raw) + raw]

    model = network("vgg_small", taps=(2,))
    model.backbone = Twice().eval()
    images = generated_images(3, 48)
    *_, (_, logits) = floats.outputs(float_graph(model), images)
    assert signal_to_noise(model.logits(images), logits.numpy()) > 80


def test_an_output_is_freed_after_its_last_use():
    calibrated_graph = calibrated("vgg_small")[1].graph
    alive, most = [], 0
    for _, value in floats.outputs(calibrated_graph, generated_images(2, 48, seed=1)):
        alive = [each for each in alive if each() is not None] + [weakref.ref(value)]
        del value
        most = max(most, len(alive))
    assert most < len(calibrated_graph.layers) // 2
