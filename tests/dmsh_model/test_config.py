import json

import pytest

from dmsh_model import HashConfig
from dmsh_model.config import LossWeights
from dmsh_serving.errors import InputError


def test_a_config_survives_json():
    config = HashConfig("vgg_small", 48, 32, taps=(1, 3), num_classes=7, loss=LossWeights(1, 0.2, 0.3))
    assert HashConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_that_names_no_rule_of_decoding_keeps_the_first():
    values = HashConfig("vgg_small", 48, 32).to_dict()
    assert HashConfig.from_dict(values).framing.decode_rule == 2
    del values["decode_rule"]
    assert HashConfig.from_dict(values).framing.decode_rule == 1


@pytest.mark.parametrize("bits", [0, -1, 1025])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(InputError, match=f"bits = {bits} is out of range: a code has 1 to 1024 bits"):
        HashConfig(bits=bits)


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(InputError) as error:
        HashConfig(image_size=8, lateral_features=0, pooling="median", taps=(), std=(1, 1, 0))
    for part in ("image_size = 8", "lateral_features = 0", "pooling = 'median'", "taps = []", "std above 0"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": "middle"}, "crop = 'middle' must be one of centre, pad"),
        ({"interpolation": "nearest"}, "interpolation = 'nearest' must be one of bicubic, bilinear, lanczos"),
        ({"mean": [124, 116, 104]}, "must be 0 to 1: a value of 255 counts as 1"),
        ({"std": [float("nan"), 1, 1]}, "must be 0 to 1"),
        ({"colour": 1, "bits": 64}, "unknown fields colour"),
        ({"bits": "64"}, "wrong type"),
        ({"bits": 64.5}, "bits = 64.5 must be a whole number"),
        ({"bits": True}, "bits = True must be a whole number"),
        ({"image_size": 1 << 20}, "image_size = 1048576 must be at most 4096"),
        ({"image_size": 32.0}, "image_size = 32.0 must be a whole number"),
        ({"taps": 3}, "wrong type"),
        ({"mean": None}, "wrong type"),
        ({"taps": [1.5]}, "taps"),
        ({"backbone": 5}, "backbone = 5"),
        ({"loss": {"contrast": 1}}, "wrong type"),
        ({"loss": {"pairwise": -1}}, "pairwise = -1"),
        ({"loss": {"pairwise": float("nan")}}, "pairwise = nan"),
    ],
)
def test_a_config_file_with_a_wrong_field_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        HashConfig.from_dict(values)
