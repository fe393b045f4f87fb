"""The image that a running server is asked for."""

import numpy as np
import pytest
import tiny_model

from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import image_from_bytes
from dmsh_serving.triton.canary import Canary

IMAGES = tiny_model.random_images(3)
CODES = tiny_model.codes_of(IMAGES)
ANSWER = known_answer.dump(IMAGES, CODES)


def test_decoding_gives_the_image_back_as_it_is_and_its_code_is_the_known_one():
    canary = Canary.of_known_answer(ANSWER)
    np.testing.assert_array_equal(image_from_bytes(canary.file, tiny_model.SIZE), IMAGES[0])
    assert canary.code == CODES[0].tobytes()


def test_a_configuration_carries_it():
    canary = Canary.of_known_answer(ANSWER)
    assert Canary.from_parameters({"image_size": "16", **canary.parameters()}) == canary


def test_without_one_any_code_is_right():
    canary = Canary.from_parameters({})
    assert canary.parameters() == {}
    assert canary.differing_bits(b"anything") == 0
    assert image_from_bytes(canary.file, 16).shape == (16, 16, 3)


def test_every_wrong_bit_counts():
    canary = Canary.of_known_answer(ANSWER)
    wrong = CODES[0].copy()
    wrong[2] ^= 0b101
    assert canary.differing_bits(CODES[0].tobytes()) == 0
    assert canary.differing_bits(wrong.tobytes()) == 2
    assert canary.differing_bits(b"short") == 64


@pytest.mark.parametrize("damage", [{"canary_file": "%%"}, {"canary_code": "xyz"}])
def test_a_damaged_one_is_refused(damage):
    with pytest.raises(InputError, match="write the repository again"):
        Canary.from_parameters({**Canary.of_known_answer(ANSWER).parameters(), **damage})
