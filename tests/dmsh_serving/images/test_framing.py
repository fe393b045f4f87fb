import ast
import hashlib
import itertools

import numpy as np
import pytest
from project import ROOT

from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import decode_recipe, image_from_pixels
from dmsh_serving.images.framing import CROPS, DECODE_RULES, INTERPOLATIONS, Framing
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


@pytest.mark.parametrize("text", ["", "centre", "middle bicubic", "pad nearest", "x" * 10**6])
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


def test_a_recipe_that_was_used_never_changes():
    """Fingerprints of checkpoints that exist are made of these texts."""
    digests = [
        hashlib.sha256(decode_recipe(Framing(decode_rule=rule)).encode()).hexdigest()[:16] for rule in DECODE_RULES
    ]
    assert digests == ["e10dfaf4be1416ca", "b7e73ad842b672dc"]


@pytest.mark.parametrize("rule", DECODE_RULES)
def test_the_rule_of_decoding_is_kept_in_the_text(rule):
    framing = Framing("pad", "lanczos", rule)
    assert Framing.parse(str(framing)) == framing


def test_what_names_no_rule_or_no_framing_was_made_by_the_first():
    assert Framing.parse(None) == Framing.parse("centre bicubic") == Framing(decode_rule=1)
    assert str(Framing(decode_rule=1)) == "centre bicubic"


@pytest.mark.parametrize("text", ["centre bicubic 3", "centre bicubic 0", "centre bicubic two", "centre bicubic 2 2"])
def test_a_rule_of_decoding_that_is_not_known_is_refused(text):
    with pytest.raises(InputError, match=r"decode_rule = .* must be one of 1, 2"):
        Framing.parse(text)


def test_whoever_decodes_for_a_network_says_by_which_framing():
    """The default is for those who have no network yet: a forgotten framing would give silently other codes."""
    readers = {"image_from_bytes", "image_from_pixels", "load_images", "iter_image_batches", "iter_listed_batches",
               "load_labelled", "spread_images", "spread_batches", "files_key", "pixels_key"}  # fmt: skip
    silent = {
        file.relative_to(ROOT).as_posix()
        for package in ("serving", "export")
        for file in sorted((ROOT / package).rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", getattr(call.func, "attr", "")) in readers
        and "framing" not in ast.unparse(call)
    }
    assert silent == {"export/dmsh_export/demo/drawings.py"}, "reads pictures to train on, before there is a network"
