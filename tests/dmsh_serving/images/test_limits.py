import io

import pytest
from PIL import Image

from dmsh_serving.errors import InputError
from dmsh_serving.images.limits import MAX_PIXELS, check_memory, check_size


def opened(mode, kind="PNG", size=(64, 48), **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return Image.open(buffer)


def largest(mode, kind="PNG", **options):
    """Return how many pixels of this kind are decoded at most, found by asking."""
    image = opened(mode, kind, **options)
    low, high = 0, MAX_PIXELS
    while low < high:
        middle = (low + high + 1) // 2
        image._size = (middle, 1)
        try:
            check_memory(image, "x")
            low = middle
        except InputError:
            high = middle - 1
    return low


@pytest.mark.parametrize(("bytes_per_pixel", "mode", "kind"), [
    (8, "RGB", "JPEG"), (12, "CMYK", "JPEG"), (6, "L", "PNG"), (9, "I;16", "PNG"), (13, "RGBA", "PNG"),
    (17, "LA", "PNG"), (17, "RGB", "WEBP"),
])  # fmt: skip
def test_the_pixels_allowed_follow_from_the_bytes_that_a_kind_needs(bytes_per_pixel, mode, kind):
    assert largest(mode, kind) == min(MAX_PIXELS, 10 * MAX_PIXELS // bytes_per_pixel)


def test_a_transparent_palette_costs_more_than_a_plain_one():
    assert largest("P", transparency=0) == 10 * MAX_PIXELS // 11
    assert largest("P") == MAX_PIXELS


def test_a_strip_of_a_tiff_counts():
    image = opened("L", "TIFF", compression="tiff_lzw")
    check_memory(image, "x")
    image.tag_v2[277] = 60_000  # samples per pixel
    image._size = (16_384, 4096)
    image.tag_v2[278] = 4096
    with pytest.raises(InputError, match=r"^x: 16384 x 4096 pixels of this kind \(TIFF, L\) need [\d,]+ MiB"):
        check_memory(image, "x")


@pytest.mark.parametrize(("size", "message"), [
    ((0, 5), "nothing to decode"), ((8193, 8192), "too large"), ((65_536, 1), "65535 a side"),
])  # fmt: skip
def test_a_size_out_of_range_is_refused(size, message):
    with pytest.raises(InputError, match=message):
        check_size(size, "x")
