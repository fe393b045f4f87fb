import numpy as np
import pytest
import torch

from dmsh_model import HashConfig
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import CROPS, INTERPOLATIONS

BACKBONES = [("vgg19", 32), ("vgg11_bn", 32), ("resnet50", 64), ("efficientnet_lite0", 64), ("vgg_small", 32)]


def images_of(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def small(**fields):
    torch.manual_seed(0)
    values = {"backbone": "vgg_small", "image_size": 32, "lateral_features": 16, "fusion_features": 24, **fields}
    return DMSH(HashConfig(**values)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size"), BACKBONES, ids=[name for name, _ in BACKBONES])
def test_every_backbone_gives_codes(backbone, size):
    model = small(backbone=backbone, image_size=size, bits=20)
    images = images_of(3, size)
    logits, codes = model.logits(images), model.codes(images)
    assert (logits.shape, logits.dtype) == ((3, 20), np.float32)
    assert (codes.shape, codes.dtype) == ((3, 3), np.uint8)
    assert np.array_equal(codes, np.packbits(logits > 0, axis=1))


@pytest.mark.parametrize("bits", [1, 8, 13, 1024])
def test_any_number_of_bits_gives_its_bytes(bits):
    assert small(bits=bits).codes(images_of(2, 32)).shape == (2, -(-bits // 8))


def test_normalisation_is_part_of_the_network():
    model = small(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 0.25))
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).expand(1, 32, 32, 3)
    assert model.normalise(image)[0, :, 0, 0].tolist() == pytest.approx([1.0, -0.25, 0.8])


def test_every_framing_is_a_code_space_of_its_own():
    spaces = {small(crop=crop, interpolation=filter_).fingerprint for crop in CROPS for filter_ in INTERPOLATIONS}
    assert len(spaces) == len(CROPS) * len(INTERPOLATIONS)


def test_the_logits_are_those_of_the_layers_one_by_one():
    model = small(lateral_activation="relu", pooling="max", fusion_activation="tanh")
    image = torch.from_numpy(images_of(2, 32))
    features = model.backbone(
        (image.permute(0, 3, 1, 2).float() / 255 - model.normalise.mean / 255) * 255 / model.normalise.std
    )
    scales = [
        torch.relu(lateral.norm(lateral.conv(feature))).flatten(2).max(dim=2).values
        for lateral, feature in zip(model.laterals, features, strict=True)
    ]
    expected = model.hash(torch.tanh(model.fusion(torch.cat(scales, dim=1))))
    assert np.allclose(model.logits(image.numpy()), expected.detach().numpy(), atol=1e-4)


def test_coding_leaves_the_network_in_training_mode_but_uses_eval_mode():
    model = small()
    expected = model.codes(images_of(4, 32))
    model.train()
    assert np.array_equal(model.codes(images_of(4, 32)), expected)
    assert model.training


def test_the_batch_size_does_not_change_a_code():
    model = small()
    images = images_of(9, 32)
    assert np.array_equal(model.codes(images, batch_size=2), model.codes(images, batch_size=64))


def test_no_images_give_no_codes():
    assert small().codes(images_of(0, 32)).shape == (0, 8)


@pytest.mark.parametrize(
    "images", [images_of(2, 16), images_of(2, 32).astype(np.float32), images_of(2, 32)[0], images_of(2, 32)[..., :1]]
)
def test_images_of_another_shape_or_type_are_refused(images):
    with pytest.raises(InputError, match=r"images must be uint8 \[N, 32, 32, 3\]"):
        small().codes(images)


def test_a_logit_that_is_not_a_number_gives_no_code():
    model = small()
    with torch.no_grad():
        model.hash.bias[3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        model.codes(images_of(1, 32))
