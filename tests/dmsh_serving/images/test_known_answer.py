"""That this machine's Pillow is asked for pixels that are known, before any other image is decoded."""

import numpy as np
import pytest

from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images import known_answer
from dmsh_serving.images.read import load_images
from dmsh_serving.triton.services import DecodeService


@pytest.fixture
def other_pillow(monkeypatch):
    """A Pillow that rounds one value of one image otherwise."""
    right = known_answer.image_from_bytes

    def wrong(data, image_size, framing, *, name):
        image = np.array(right(data, image_size, framing, name=name))
        if name == "photo.webp" and str(framing) == "pad lanczos 2":
            image[5, 5, 1] ^= 1
        return image

    known_answer.check_decoder.cache_clear()
    monkeypatch.setattr(known_answer, "image_from_bytes", wrong)
    yield
    known_answer.check_decoder.cache_clear()


def test_this_pillow_gives_the_known_pixels():
    known_answer.check_decoder.cache_clear()
    known_answer.check_decoder()


def test_a_pillow_without_avif_is_asked_for_the_rest(monkeypatch):
    known_answer.check_decoder.cache_clear()
    monkeypatch.setattr(known_answer, "FORMATS", ("JPEG", "PNG"))
    monkeypatch.setitem(known_answer._KNOWN, "photo.avif", "another")
    known_answer.check_decoder()
    known_answer.check_decoder.cache_clear()


def test_one_other_bit_of_one_pixel_is_an_error(other_pillow):
    with pytest.raises(
        CheckError, match=r"makes other pixels of photo\.webp than those that codes are made of, or none: install"
    ):
        known_answer.check_decoder()


def test_a_pillow_that_does_not_decode_a_file_is_named(monkeypatch):
    def none(data, *, name):
        raise InputError(f"{name}: not an image")

    known_answer.check_decoder.cache_clear()
    monkeypatch.setattr(known_answer, "rgb_from_bytes", none)
    with pytest.raises(CheckError, match=r"^Pillow [\d.]+ makes other pixels of photo\.jpg .*, or none: install"):
        known_answer.check_decoder()


def test_no_image_is_decoded_with_another_pillow(other_pillow, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(CheckError, match="other pixels"):
        load_images(tmp_path, 8)
    with pytest.raises(CheckError, match="other pixels"):
        DecodeService.open(None)
