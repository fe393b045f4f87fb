import pytest
import timm
import torch

from dmsh_model.backbone import build_backbone, check_features
from dmsh_serving.errors import InputError

pytestmark = pytest.mark.slow

# name, image size, taps, channels, sides: the last layers of conv3, conv4 and conv5.
LEVELS = [
    ("vgg19", 32, (2, 3, 4), (256, 512, 512), (8, 4, 2)),
    ("vgg11_bn", 32, (2, 3, 4), (256, 512, 512), (8, 4, 2)),
    ("resnet50", 64, (2, 3, 4), (512, 1024, 2048), (8, 4, 2)),
    ("efficientnet_lite0", 64, (2, 3, 4), (40, 112, 320), (8, 4, 2)),
    ("vgg_small", 32, (2, 3, 4), (64, 96, 128), (8, 4, 2)),
]


@pytest.mark.parametrize(("name", "size", "taps", "channels", "sides"), LEVELS, ids=[level[0] for level in LEVELS])
def test_the_default_taps_end_the_last_three_stages(name, size, taps, channels, sides):
    backbone = build_backbone(name, None)
    assert (backbone.taps, backbone.channels) == (taps, channels)
    features = backbone.module.eval()(torch.zeros(2, 3, size, size))
    assert [tuple(feature.shape) for feature in features] == [
        (2, channel, side, side) for channel, side in zip(channels, sides, strict=True)
    ]


@pytest.mark.parametrize("name", ["vgg_small", "resnet50"])
def test_other_taps_give_their_levels_in_ascending_order(name):
    backbone = build_backbone(name, (3, 1))
    assert backbone.taps == (1, 3)
    features = backbone.module.eval()(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[1] for feature in features] == list(backbone.channels)
    assert features[0].shape[2] == 4 * features[1].shape[2]


def test_a_vgg_tap_is_a_convolution_stage_after_its_last_relu():
    backbone = build_backbone("vgg11_bn", None)
    features = backbone.module.eval()(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert all(feature.min() == 0 for feature in features)


def test_the_small_vgg_has_less_than_half_a_million_weights():
    weights = build_backbone("vgg_small", None).module.parameters()
    assert 400_000 < sum(weight.numel() for weight in weights) < 500_000


@pytest.mark.parametrize(("name", "nearest"), [("vgg91", "vgg19"), ("resnet5", "resnet50"), ("vgg_smal", "vgg_small")])
def test_an_unknown_backbone_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(InputError, match=rf"unknown backbone '{name}'; nearest names: .*{nearest}"):
        build_backbone(name, None)


@pytest.mark.parametrize("name", ["vgg_small", "vgg11_bn"])
@pytest.mark.parametrize("taps", [(0, 9), (-1, 2)])
def test_a_tap_the_backbone_does_not_have_is_refused(name, taps):
    with pytest.raises(InputError, match="has feature levels 0 to"):
        build_backbone(name, taps)


def test_a_backbone_without_feature_levels_is_refused(monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("features_only not implemented for this model")

    monkeypatch.setattr(timm, "create_model", refuses)
    with pytest.raises(InputError, match="'vgg11' cannot return its feature levels: features_only not implemented"):
        build_backbone("vgg11", None)


def test_a_backbone_without_feature_maps_at_the_image_size_is_refused():
    name = "swin_tiny_patch4_window7_224"  # channels last, one image size
    backbone = build_backbone(name, None)
    with pytest.raises(InputError, match="does not take images of 64 pixels"):
        check_features(backbone, name, 64)
    with pytest.raises(InputError, match=r"gives features \[1, .* needs \[1, 192, H, W\]"):
        check_features(backbone, name, 224)
    assert backbone.module.training
