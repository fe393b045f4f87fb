"""Folding changes the layers, never the function; and it says what it did."""

import pytest
import torch
from torch import nn

from dmsh_export.to_onnx.fold import _fold_backbone, batch_norm_affine, fold
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH

SIZE = 48


def network(**fields):
    """A network whose BNs have run: random statistics, so that a wrong fold cannot hide."""
    torch.manual_seed(3)
    defaults = {"backbone": "vgg_small", "image_size": SIZE, "lateral_features": 24, "fusion_features": 40, "bits": 20}
    model = DMSH(HashConfig(**{**defaults, **fields})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model


def images():
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fusion_activation": "none"},
        {"fusion_activation": "tanh"},
        {"lateral_activation": "relu"},
        {"pooling": "max"},
        {"pooling": "max", "lateral_activation": "relu", "fusion_activation": "none"},
        {"taps": (1, 4)},
        {"backbone": "vgg11_bn"},
        {"backbone": "resnet18"},
        {"backbone": "efficientnet_lite0"},
    ],
)
@torch.inference_mode()
def test_in_float64_a_folded_network_computes_the_same_logits(fields):
    model = network(**fields).double()
    folded, _ = fold(model)
    expected, found = model(images()), folded(images())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12


def test_no_batch_normalisation_is_left_in_a_folded_network():
    folded, _ = fold(network(backbone="efficientnet_lite0", lateral_activation="relu"))
    assert not [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]


def test_folding_leaves_the_network_it_was_given_untouched():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_linear_head_becomes_one_gemm_on_pooled_vectors():
    folded, steps = fold(network(fusion_activation="none"))
    assert [type(module) for module in folded.head] == [nn.Linear]
    assert folded.head[0].weight.shape == (20, 64 + 96 + 128)
    assert {step.what for step in steps if not step.folded} == {"normalisation into the first convolution"}
    assert "laterals onto pooled vectors" in {step.what for step in steps if step.folded}


@pytest.mark.parametrize(
    ("fields", "what", "why"),
    [
        ({}, "fusion and hash layer into one Gemm", "a relu stands between"),
        ({"pooling": "max"}, "laterals onto pooled vectors", "max pooling is not linear"),
        (
            {"lateral_activation": "relu"},
            "laterals and fusion into one Gemm",
            "a relu stands between the lateral and its pooling",
        ),
    ],
)
def test_what_cannot_be_folded_is_reported_with_its_reason(fields, what, why):
    _, steps = fold(network(**fields))
    assert [step.why for step in steps if step.what == what and not step.folded] == [why]


def test_a_batch_normalisation_whose_convolution_is_used_twice_is_kept_and_reported():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(64)
            self.last, self.last_norm = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)

        def forward(self, image):
            raw = self.conv(image)
            return [self.last_norm(self.last(self.norm(raw) + raw))]

    model = network(taps=(2,))
    model.backbone = Twice().eval()
    folded, steps = fold(model)
    told = [(step.what, step.why) for step in steps if step.what.startswith("BN ") and "norm" in step.what]
    assert told == [("BN norm", "the output of conv is used elsewhere too"), ("BN last_norm", "into last")]
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), model(images()))


def test_a_backbone_that_cannot_be_traced_is_served_as_it_is_and_reported():
    class Branching(nn.Module):
        def forward(self, image):
            return [image.repeat(1, 22, 1, 1)[:, :64] if image.sum() > 0 else image.repeat(1, 22, 1, 1)[:, 2:66]]

    model = network(taps=(2,))
    model.backbone = Branching()
    folded, steps = fold(model)
    assert not next(step for step in steps if step.what == "BN of the backbone").folded
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), model(images()))


def test_a_backbone_whose_features_come_from_hooks_is_served_as_it_is_and_reported():
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.found = nn.Conv2d(3, 64, 3), []
            self.conv.register_forward_hook(self.keep)

        def keep(self, module, inputs, output):
            self.found.append(output)

        def forward(self, image):
            self.found.clear()
            self.conv(image)
            return list(self.found)

    model = network(taps=(2,))
    model.backbone = Hooked().eval()
    folded, steps = fold(model)
    told = next(step for step in steps if step.what == "BN of the backbone")
    assert (told.folded, told.why) == (False, "the backbone cannot be traced: 1 of 1 features come from hooks")
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), model(images()))


def test_each_bn_is_told_with_where_it_went_or_why_it_stays():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    backbone(torch.randn(16, 3, 5, 5))  # statistics that are not 0 and 1
    steps = []
    folded = _fold_backbone(backbone.eval(), 1, steps)
    assert [(step.what, step.folded, step.why) for step in steps] == [
        ("BN 1", False, "what feeds it is no convolution"),
        ("BN 3", True, "into 2"),
    ]
    inputs = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(folded(inputs), backbone(inputs))
    assert [type(module) for module in folded.children()] == [nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.Identity]


def test_a_bn_without_statistics_is_refused():
    with pytest.raises(ValueError, match="has no fixed scale"):
        batch_norm_affine(nn.BatchNorm2d(3, track_running_stats=False))
