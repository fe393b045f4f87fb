"""Hostile and odd image files; the numbers are those of the project's table of faults."""

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hostile_images import SLOW, bmp_of_runs, png_of_many_profiles
from PIL import Image

from dmsh_serving.contract import FILE, IMAGE
from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import FORMATS, image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.jpeg import MAX_SCANS
from dmsh_serving.images.limits import MAX_DECODE_BYTES, MAX_PACKED, MAX_PIXELS
from dmsh_serving.triton.services import DecodeService

SIZE = 16


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=96, height=72):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


GOOD = file_of(photo(), "JPEG")
JPEGS = {
    f"{'progressive' if progressive else 'sequential'} {mode} {subsampling}": file_of(
        photo().convert(mode), "JPEG", progressive=progressive, subsampling=subsampling
    )
    for progressive in (False, True)
    for mode, subsampling in (("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0), ("CMYK", 0))
} | {
    "with restarts": file_of(photo(), "JPEG", restart_marker_rows=1),
    "progressive with restarts": file_of(photo(), "JPEG", restart_marker_blocks=3, progressive=True),
}


def many_scans(count, side):
    """A progressive JPEG of one colour whose last scan comes ``count`` times more."""
    plain = file_of(Image.new("RGB", (side, side), (9, 200, 30)), "JPEG", progressive=True)
    return plain[:-2] + plain[plain.rfind(b"\xff\xc4") : -2] * count + plain[-2:]


def one_tile_tiff(image_side, tile_side):
    """A grey deflate TIFF of one tile, far larger than its image."""
    data = zlib.compress(bytes(tile_side * tile_side))
    tags = [
        (256, image_side), (257, image_side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile_side),
        (323, tile_side), (324, 8), (325, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


@pytest.fixture(scope="module")
def answers_beside_good_ones():
    """Decodes a file in one batch with good requests; returns its answer after those of the others were checked."""
    service = DecodeService(SIZE, Framing(), threads=2)

    def answered(data):
        requests = [{FILE: np.array([[file]], dtype=np.object_)} for file in (GOOD, data, GOOD)]
        first, bad, last = service.answer(requests)
        for answer in (first, last):
            assert np.array_equal(answer[IMAGE][0], image_from_bytes(GOOD, SIZE))
        return bad

    answered(GOOD)  # starts the processes
    yield answered
    service.close()


def peak_bytes(data, folder):
    """Return by how much decoding ``data`` raises the peak memory of a fresh process, and what was refused."""
    (folder / "file").write_bytes(data)
    code = (
        "import pathlib, sys\n"
        "from dmsh_serving.errors import InputError\n"
        "from dmsh_serving.images.decode import image_from_bytes\n"
        "def peak():\n"  # not ru_maxrss: a child starts with its parent's
        "    return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "before, refused = peak(), ''\n"
        "try:\n"
        "    image_from_bytes(data, 16)\n"
        "except InputError as error:\n"
        "    refused = error\n"
        "print(peak() - before, refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder / "file"], capture_output=True, text=True, check=True)
    grown, _, refused = done.stdout.strip().partition(" ")
    return int(grown), refused


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100)])
def test_fault_01_no_image_is_the_error_of_its_request_alone(data, answers_beside_good_ones):
    assert isinstance(answers_beside_good_ones(data), InputError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fault_02_half_a_file_is_refused(kind, answers_beside_good_ones):
    data = file_of(photo(), kind)
    assert "truncated or damaged" in str(answers_beside_good_ones(data[: len(data) // 2]))


def test_fault_03_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 8193
    assert side * side > MAX_PIXELS
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(side * (side * 3 + 1)))
    grown, refused = peak_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""), tmp_path)
    assert "8193 x 8193 pixels is too large" in refused
    assert grown < 16 << 20


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"P6 1 1 255 abc", "PPM"),
        (b"<svg/>", "SVG"),
        (b"\0\0\x01\0\x01", "icon"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
    ],
)
def test_fault_04_another_format_is_refused_by_name(data, kind, answers_beside_good_ones):
    assert f"{kind} is not accepted; {', '.join(FORMATS)} are" in str(answers_beside_good_ones(data))


def test_fault_05_odd_images_become_rgb_by_the_defined_rules():
    exif = Image.Exif()
    exif[0x0112] = 6
    left_red = Image.new("RGB", (SIZE, SIZE), "blue")
    left_red.paste((255, 0, 0), (0, 0, SIZE // 2, SIZE))
    palette = Image.new("P", (SIZE, SIZE), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    expected = {
        file_of(Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0)), "TIFF"): [0, 255, 255],
        file_of(Image.fromarray(np.full((SIZE, SIZE), 25_700, np.uint16)), "PNG"): [100, 100, 100],
        file_of(palette, "PNG"): [10, 20, 30],
        file_of(Image.new("RGBA", (SIZE, SIZE), (200, 0, 0, 51)), "PNG"): [244, 204, 204],
        file_of(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"): [1, 2, 3],
        file_of(Image.new("RGB", (60_000, 1), (4, 5, 6)), "PNG"): [4, 5, 6],
        file_of(left_red, "PNG", exif=exif): [255, 0, 0],  # turned: red is above
    }
    for data, colour in expected.items():
        assert image_from_bytes(data, SIZE)[0, -1].tolist() == colour


def test_fault_29_a_jpeg_of_hundreds_of_scans_is_refused_at_once_and_alone(answers_beside_good_ones):
    data = many_scans(500, side=2000)
    assert len(data) < 200_000
    assert f"more than {MAX_SCANS} scans" in str(answers_beside_good_ones(data))  # undecoded


def test_fault_29_scans_that_are_few_but_huge_are_refused():
    with pytest.raises(InputError, match=r"60 scans of 49000000 pixels are too much work: at most 21 scans"):
        image_from_bytes(many_scans(50, side=7000), SIZE)


def test_fault_29_a_flood_of_empty_segments_is_refused_before_pillow_reads_them(answers_beside_good_ones):
    data = GOOD[:2] + b"\xff\xfe\0\2" * 2_000_000 + GOOD[2:]
    start = time.perf_counter()
    assert "marker segments" in str(answers_beside_good_ones(data))
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("kind", "before", "block", "after"),
    [
        ("PNG", b"", bytes(4) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd")), b""),
        ("GIF", b"", b"!\xfe\1a\0", b""),
        ("GIF", b"!\xfe", b"\1a", b"\0"),
    ],
)
def test_fault_29_a_flood_of_small_blocks_is_refused_before_pillow_reads_them(
    kind, before, block, after, answers_beside_good_ones
):
    plain = file_of(Image.new("L", (8, 8)), kind)
    at = 33 if kind == "PNG" else plain.index(b",\0\0\0\0")  # after the header, before the first frame
    flood = plain[:at] + before + block * 5_000_000 + after + plain[at:]
    start = time.perf_counter()
    assert "more than 65536 blocks" in str(answers_beside_good_ones(flood))
    assert time.perf_counter() - start < 3
    few = plain[:at] + before + block * 100 + after + plain[at:]
    assert np.array_equal(image_from_bytes(few, SIZE), image_from_bytes(plain, SIZE))


def test_fault_29_a_file_that_is_slow_to_open_is_the_error_of_its_request_alone(answers_beside_good_ones):
    assert str(answers_beside_good_ones(SLOW["TIFF"])) == "file: the image takes too long to decode"


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_fault_29_metadata_that_inflates_is_refused_undecoded(kind, answers_beside_good_ones):
    many = answers_beside_good_ones(png_of_many_profiles(MAX_PACKED + 1, kind))
    assert "more than 64 profiles and compressed texts" in str(many)
    few = answers_beside_good_ones(png_of_many_profiles(3, kind))
    assert few[IMAGE].shape == (1, SIZE, SIZE, 3)


def test_fault_29_a_bmp_that_pillow_would_decode_in_python_is_refused(answers_beside_good_ones):
    assert "run-length coded BMP is not accepted" in str(answers_beside_good_ones(bmp_of_runs(1000)))


def test_fault_30_a_huge_tile_of_a_small_tiff_is_refused_unread(tmp_path):
    grown, refused = peak_bytes(one_tile_tiff(64, 30_000), tmp_path)
    assert "MiB to decode, at most 640 are given" in refused
    assert grown < 16 << 20


def test_fault_30_grey_of_16_bits_costs_no_more_than_it_is_said_to(tmp_path):
    side = 4000
    data = file_of(Image.fromarray(np.full((side, side), 257, np.uint16)), "PNG")
    grown, refused = peak_bytes(data, tmp_path)
    assert not refused
    assert grown < 9 * side * side, "twice the 2 bytes stored, 1 of grey, 4 of RGB"
    assert 9 * MAX_PIXELS <= MAX_DECODE_BYTES


@pytest.mark.parametrize("kind", JPEGS)
def test_fault_31_a_jpeg_cut_anywhere_and_ended_is_refused(kind):
    """Only the blocks of the last bytes may be missing unnoticed, since libjpeg reads ahead."""
    whole = JPEGS[kind]
    for cut in range(whole.index(b"\xff\xda"), len(whole) - 64, 7):
        with pytest.raises(InputError, match="truncated or damaged"):
            rgb_from_bytes(whole[:cut] + b"\xff\xd9")


def test_fault_31_half_a_jpeg_is_the_error_of_its_request_alone(answers_beside_good_ones):
    half = GOOD[: len(GOOD) // 2] + b"\xff\xd9"
    Image.open(io.BytesIO(half)).load()  # Pillow makes up the rest
    assert "the image data ends early" in str(answers_beside_good_ones(half))


@pytest.mark.parametrize("kind", JPEGS)
def test_fault_31_a_whole_jpeg_gives_the_pixels_that_pillow_gives(kind):
    with Image.open(io.BytesIO(JPEGS[kind])) as image:
        assert rgb_from_bytes(JPEGS[kind]).tobytes() == image.convert("RGB").tobytes()
