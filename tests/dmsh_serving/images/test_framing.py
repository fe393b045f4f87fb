import itertools

import numpy as np
import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import decode_recipe, image_from_pixels
from dmsh_serving.images.framing import CROPS, INTERPOLATIONS, Framing
from dmsh_serving.images.read import load_images

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
EVERY = [Framing(crop, interpolation) for crop, interpolation in itertools.product(CROPS, INTERPOLATIONS)]


def banner(width=40, height=20):
    """A picture whose outer fourths are blue, the rest red."""
    pixels = np.full((height, width, 3), RED, np.uint8)
    pixels[:, : width // 4] = pixels[:, -(width // 4) :] = BLUE
    return pixels


def test_centre_keeps_the_central_square_alone():
    image = image_from_pixels(banner(), 20)
    assert (image == RED).all()


@pytest.mark.parametrize("turned", [False, True])
def test_pad_keeps_the_whole_picture_centred_on_white(turned):
    pixels = banner().transpose(1, 0, 2) if turned else banner()
    image = image_from_pixels(np.ascontiguousarray(pixels), 40, Framing("pad"))
    image = image.transpose(1, 0, 2) if turned else image
    assert (image[:10] == WHITE).all()
    assert (image[30:] == WHITE).all()
    assert np.array_equal(image[10:30], banner())


def test_a_square_picture_is_the_same_in_both():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    assert np.array_equal(image_from_pixels(pixels, 16), image_from_pixels(pixels, 16, Framing("pad")))


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
def test_a_line_is_one_pixel_wide_and_costs_no_square_of_its_length(shape):
    image = image_from_pixels(np.zeros((*shape, 3), np.uint8), 8, Framing("pad"))
    assert (image == 0).all(axis=2).sum() == 8
    assert (image == 255).all(axis=2).sum() == 56


def test_every_interpolation_gives_another_image_and_another_recipe():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    assert len({image_from_pixels(pixels, 16, framing).tobytes() for framing in EVERY}) == len(EVERY)
    assert len({decode_recipe(framing) for framing in EVERY}) == len(EVERY)


@pytest.mark.parametrize("framing", EVERY, ids=str)
def test_what_is_written_is_read(framing):
    assert Framing.parse(str(framing)) == framing


@pytest.mark.parametrize("text", ["", "centre", "middle bicubic", "pad nearest", "pad bicubic more", "x" * 10**6])
def test_another_text_is_refused_with_the_choices(text):
    with pytest.raises(InputError, match=r"must be one of (centre, pad|bicubic, bilinear, lanczos)") as error:
        Framing.parse(text)
    assert len(str(error.value)) < 300


def test_a_folder_is_read_as_the_framing_says(tmp_path):
    from PIL import Image

    Image.fromarray(banner()).save(tmp_path / "banner.png")
    read = load_images(tmp_path, 40, Framing("pad", "lanczos")).images[0]
    assert np.array_equal(read, image_from_pixels(banner(), 40, Framing("pad", "lanczos")))
    assert not np.array_equal(read, load_images(tmp_path, 40).images[0])
