import json

import numpy as np
import pytest
import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsh_serving.codes import Encoded
from dmsh_serving.encoder import known_answer
from dmsh_serving.errors import CheckError, InputError

IMAGES = tiny_model.random_images(3)
CODES, LOGITS = tiny_model.codes_of(IMAGES), tiny_model.logits_of(IMAGES).astype(np.float32)


def encoded(images, code=None):
    found = tiny_model.codes_of(images) if code is None else code
    return Encoded(found, tiny_model.logits_of(images).astype(np.float32))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 128), st.integers(0, 2**32 - 1))
def test_what_is_dumped_is_loaded(count, size, width, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    codes = rng.integers(0, 256, (count, width), dtype=np.uint8)
    loaded_images, loaded_codes = known_answer.load(known_answer.dump(images, codes))
    np.testing.assert_array_equal(loaded_images, images)
    np.testing.assert_array_equal(loaded_codes, codes)


def test_the_right_codes_pass():
    known_answer.check(encoded, known_answer.dump(IMAGES, CODES))
    known_answer.check(encoded, known_answer.dump(IMAGES, CODES, LOGITS))


@pytest.mark.parametrize("bits", [1, 5])
def test_wrong_bits_are_counted_and_refused(bits):
    wrong = CODES.copy()
    wrong[0, 0] ^= (1 << bits) - 1
    with pytest.raises(CheckError, match=rf"{bits} of {CODES.size * 8} bits differ.*saturate"):
        known_answer.check(lambda images: encoded(images, wrong), known_answer.dump(IMAGES, CODES))


def test_an_image_alone_is_encoded_too():
    def wrong_alone(images):
        return encoded(images, ~tiny_model.codes_of(images) if len(images) == 1 else None)

    with pytest.raises(CheckError, match=f"{CODES[0].size * 8} of {CODES[0].size * 8} bits differ"):
        known_answer.check(wrong_alone, known_answer.dump(IMAGES, CODES))


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("wrong", [(0, 5), slice(None)])
def test_logits_that_differ_are_refused_though_no_bit_does(rows, wrong):
    def off_by_one(images):
        logits = tiny_model.logits_of(images).astype(np.float32)
        if len(images) == rows:
            logits[wrong] += np.sign(logits[wrong]) + (logits[wrong] == 0) * -1
        return Encoded(tiny_model.codes_of(images), logits)

    known_answer.check(off_by_one, known_answer.dump(IMAGES, CODES))
    count = 1 if wrong == (0, 5) else rows * 64
    with pytest.raises(CheckError, match=f"known answer: {count} of {rows * 64} logits differ from those of"):
        known_answer.check(off_by_one, known_answer.dump(IMAGES, CODES, LOGITS))


def test_codes_of_another_width_are_refused():
    with pytest.raises(CheckError, match=r"expected codes uint8 \[3, 8\], got uint8 \[3, 7\]"):
        known_answer.check(lambda images: encoded(images, CODES[:, :7]), known_answer.dump(IMAGES, CODES))


def _damaged(array="codes", **changes):
    fields = json.loads(known_answer.dump(IMAGES, CODES, LOGITS))
    fields[array].update(changes)
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, "{}", "null", _damaged(shape=[3, 9]), _damaged(zlib_base64="AAAA"),
     _damaged(zlib_base64="é"), _damaged(shape="x"), _damaged(shape=[3, 8, 1]), _damaged("logits", shape=[2, 384]),
     _damaged("logits", shape=[256, 3]), _damaged("logits", shape=[768])],
)  # fmt: skip
def test_damaged_text_is_refused(text):
    with pytest.raises(InputError, match="known answer"):
        known_answer.load(text)


def test_an_array_cut_short_is_refused():
    fields = json.loads(known_answer.dump(IMAGES, CODES))
    fields["images"]["zlib_base64"] = fields["images"]["zlib_base64"][:400]
    with pytest.raises(InputError, match="damaged"):
        known_answer.load(json.dumps(fields))


@pytest.mark.parametrize(
    ("images", "codes"),
    [(IMAGES[0], CODES), (IMAGES.astype(float), CODES), (IMAGES, CODES[:2]), (IMAGES[:0], CODES[:0])],
)
def test_only_images_with_their_codes_are_dumped(images, codes):
    with pytest.raises(InputError, match="must be uint8"):
        known_answer.dump(images, codes)
