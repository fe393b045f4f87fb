"""The sample has every kind of JPEG at every scale of the decoder, and one byte that differs is named."""

import hashlib
import io

import pytest
from benchmarks.cpus import decoding
from benchmarks.cpus.machines import Machine
from PIL import Image

from dmsh_serving.errors import CheckError
from dmsh_serving.images.decode import image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import DECODE_RULES, Framing


@pytest.fixture(scope="module")
def files():
    return dict(decoding.sample_files())


@pytest.fixture
def machine():
    return Machine("arm64", "ARM", "QEMU", "1", (), has_toolkit=False, saturates=False)


def digests(files):
    return {
        f"{name}, rule {rule}": hashlib.sha256(
            image_from_bytes(data, decoding.IMAGE_SIZE, Framing(decode_rule=rule))
        ).hexdigest()
        for rule in DECODE_RULES
        for name, data in files.items()
    }


def test_the_sample_makes_the_decoder_scale_by_each_of_its_factors(files):
    factors = set()
    for data in files.values():
        with Image.open(io.BytesIO(data)) as image:
            least = Framing().least_side(decoding.IMAGE_SIZE)
            factors.add(round(image.height / rgb_from_bytes(data, at_least=least).height))
    assert {1, 2, 4, 8} <= factors


def test_equal_images_pass(files, machine):
    found = decoding.compared(machine, files, {"pillow": "12", "images": digests(files)})
    assert (found.passed, found.files) == (True, 2 * len(files))


def test_one_image_that_differs_or_is_absent_is_named(files, machine):
    images = digests(files)
    first, second, *_ = images
    images[first] = "0" * 64
    del images[second]
    found = decoding.compared(machine, files, {"pillow": "12", "images": images})
    assert found.different == (first, second)
    assert not found.passed
    assert f"ARM: 2 of {2 * len(files)} images differ: {first}, {second}" in found.failure()


def test_another_pillow_is_no_comparison(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(Machine, "run", lambda *_: {"pillow": "1.0", "images": {}})
    with pytest.raises(CheckError, match=r"ARM has Pillow 1\.0"):
        decoding.decoded(machine, tmp_path)
