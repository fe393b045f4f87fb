import io

import numpy as np
import pytest
from PIL import Image

from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import rgb_from_bytes
from dmsh_serving.images.jpeg import (
    MAX_SCANNED_PIXELS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_STRAY_BYTES,
    Scans,
    check_work,
    scans_of,
    shows_first_scan,
)
from dmsh_serving.images.limits import MAX_PIXELS


def jpeg(**options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


PROGRESSIVE = jpeg(progressive=True)


def test_scans_are_counted_up_to_the_end_marker():
    data = jpeg()
    assert scans_of(data, "x") == Scans(1, data.index(b"\xff\xda"), len(data) - 2, complete=True)
    assert scans_of(data + PROGRESSIVE, "x") == scans_of(data, "x")
    found = scans_of(PROGRESSIVE, "x")
    assert (found.count, found.last, found.complete) == (10, PROGRESSIVE.rindex(b"\xff\xda"), True)


def test_a_thumbnail_inside_a_segment_is_no_scan():
    inside = PROGRESSIVE[:2000]
    data = jpeg()
    data = data[:2] + b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside + data[2:]
    assert scans_of(data, "x").count == 1


def test_what_is_no_jpeg_has_no_scans():
    assert scans_of(b"\x89PNG", "x") is None


def test_a_file_without_its_end_marker_says_so():
    assert scans_of(PROGRESSIVE[:-2], "x").end is None


def test_a_progressive_file_cut_between_two_scans_is_incomplete():
    cut = PROGRESSIVE.rindex(b"\xff\xc4")
    data = PROGRESSIVE[:cut] + b"\xff\xd9"
    assert scans_of(data, "x").complete is False
    with pytest.raises(InputError, match="scans are missing"):
        rgb_from_bytes(data)


@pytest.mark.parametrize(("body", "message"), [
    (b"\xff\xda\0\2" * (MAX_SCANS + 1), None),
    (b"\xff\xda\0\3\0" * (MAX_SCANS + 1), "more than 64 scans"),
    (b"\xff\xfe\0\2" * MAX_SEGMENTS, "more than 4096 marker segments"),
    (b"\xff" * MAX_STRAY_BYTES, None),
    (b"\xff" * (MAX_STRAY_BYTES + 1), "more than 65536 stray bytes before the JPEG's image"),
    (b"\0" * 10_000_000, "more than 65536 stray bytes before the JPEG's image"),
    ((b"\xff\xfe\0\2" + b"\xff\xd0" * 100) * 400, "more than 65536 stray bytes before the JPEG's image"),
    (b"\xff\xc9\0\10\0\0\0\0\0\0", "arithmetic-coded JPEG is not accepted"),
])  # fmt: skip
def test_what_costs_too_much_or_cannot_be_checked_is_refused(body, message):
    data = b"\xff\xd8" + body + b"\xff\xd9"
    if message is None:
        assert scans_of(data, "x").count == 0
        return
    with pytest.raises(InputError, match=f"^x: .*{message}"):
        scans_of(data, "x")


def test_what_stands_behind_the_first_scan_s_marker_is_not_counted_before_it():
    data = jpeg()
    cut = data.index(b"\xff\xda")
    assert not shows_first_scan(data[:cut], "x")
    assert shows_first_scan(data[: cut + 2], "x")
    assert scans_of(data[:-2] + bytes(2 * MAX_STRAY_BYTES), "x").count == 1


@pytest.mark.parametrize("cut", range(0, 700, 3))
def test_any_cut_of_a_header_is_walked_without_an_error(cut):
    scans_of(PROGRESSIVE[:cut], "x")


def test_the_work_is_bounded_by_scans_and_pixels_together():
    scans = Scans(16, 0, None, complete=True)
    check_work(scans, (8192, 8192), "x")
    assert 16 * MAX_PIXELS == MAX_SCANNED_PIXELS
    with pytest.raises(InputError, match="17 scans of 67108864 pixels are too much work: at most 16 scans"):
        check_work(Scans(17, 0, None, complete=True), (8192, 8192), "x")
