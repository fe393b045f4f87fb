import io

import pytest
from PIL import Image

from dmsh_serving.errors import InputError
from dmsh_serving.images.limits import MAX_BLOCKS, MAX_PIXELS, check_blocks, check_memory, check_opened, check_size


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
    image._size = image.tag_v2[256], image.tag_v2[257] = (16_384, 4096)
    image.tag_v2[278] = 4096
    with pytest.raises(InputError, match=r"^x: 16384 x 4096 pixels of this kind \(TIFF, L\) need [\d,]+ MiB"):
        check_memory(image, "x")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_that_lists_fewer_strips_than_its_size_needs_is_refused(compression, orientation):
    image = opened("L", "TIFF", compression=compression, tiffinfo={278: 5, 274: orientation})
    assert len(image.tag_v2[273]) == 10  # of 48 rows
    assert (image.height == 48) == (orientation < 5)  # Pillow gives the size as it will be turned
    check_opened(image, b"", "x")
    image.tag_v2[273] = image.tag_v2[273][:9]
    with pytest.raises(InputError, match=r"^x: the image is truncated or damaged \(9 of its 10 parts are there\)"):
        check_opened(image, b"", "x")


@pytest.mark.parametrize(("size", "message"), [
    ((0, 5), "nothing to decode"), ((8193, 8192), "too large"), ((65_536, 1), "65535 a side"),
])  # fmt: skip
def test_a_size_out_of_range_is_refused(size, message):
    with pytest.raises(InputError, match=message):
        check_size(size, "x")


PNG_CHUNK = bytes(4) + b"abCd" + bytes(4)


@pytest.mark.parametrize(("start", "block", "counted"), [
    (b"\x89PNG\r\n\x1a\n", PNG_CHUNK, 1), (b"GIF89a" + bytes(7), b"!\xfe\1a\1b\0", 3),
    (b"GIF89a" + bytes(7), b"?", 1), (b"GIF89a\1\0\1\0\x80\0\0abcdef", b"!\xfe\0", 1),
])  # fmt: skip
def test_blocks_are_counted_up_to_the_bound(start, block, counted):
    allowed = MAX_BLOCKS // counted
    check_blocks(start + block * allowed, "x")
    with pytest.raises(InputError, match=f"^x: the file has more than {MAX_BLOCKS} blocks"):
        check_blocks(start + block * (allowed + 1), "x")


def test_what_stands_behind_the_end_or_the_first_frame_is_not_counted():
    check_blocks(b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND" + bytes(4) + PNG_CHUNK * 100_000, "x")
    check_blocks(b"GIF89a" + bytes(7) + b"," + b"?" * 100_000, "x")
    check_blocks(b"II*\0" + bytes(2_000_000), "x")
