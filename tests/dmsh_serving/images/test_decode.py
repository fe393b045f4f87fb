import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hostile_images import bmp_of_runs
from PIL import AvifImagePlugin, Image
from tiffs import tiff_of

from dmsh_serving.errors import InputError, MemoryShortError
from dmsh_serving.images import decode
from dmsh_serving.images.decode import MAX_FILE_BYTES, image_from_bytes, rgb_from_bytes
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.limits import MAX_PIXELS

# Pillow warns of damaged metadata; pytest undoes the filter that the module under test sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array, **options):
    return file_of(Image.fromarray(np.asarray(array)), "PNG", **options)


def photo(width=90, height=70):
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


FILES = {
    "jpeg": file_of(photo(), "JPEG"),
    "progressive jpeg": file_of(photo(), "JPEG", progressive=True),
    "png": file_of(photo(), "PNG"),
    "palette png": file_of(photo().quantize(), "PNG"),
    "webp": file_of(photo(), "WEBP"),
    "lossless webp": file_of(photo(), "WEBP", lossless=True),
    "bmp": file_of(photo(), "BMP"),
    "gif": file_of(photo().quantize(), "GIF"),
    "tiff": file_of(photo(), "TIFF"),
    "lzw tiff": file_of(photo(), "TIFF", compression="tiff_lzw"),
    "deflate tiff": file_of(photo(), "TIFF", compression="tiff_adobe_deflate"),
    "jpeg tiff": file_of(photo(), "TIFF", compression="jpeg", quality=95),
}


@pytest.mark.parametrize("kind", ["png", "lossless webp", "bmp", "tiff", "lzw tiff", "deflate tiff"])
def test_lossless_formats_give_the_same_image(kind):
    assert np.array_equal(image_from_bytes(FILES[kind], 32), image_from_bytes(FILES["png"], 32))


@pytest.mark.parametrize("kind", FILES)
def test_every_format_of_the_list_gives_an_rgb_square_near_the_original(kind):
    image = image_from_bytes(FILES[kind], 64)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    difference = np.abs(image.astype(int) - image_from_bytes(FILES["png"], 64))
    assert difference.mean() < 8


def test_an_image_of_the_right_size_is_not_touched():
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(image_from_bytes(png(pixels), 32), pixels)


def test_the_central_square_is_taken():
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(image_from_bytes(png(pixels), 8), pixels[:, 6:14])
    upright = np.ascontiguousarray(pixels.swapaxes(0, 1))
    assert np.array_equal(image_from_bytes(png(upright), 8), upright[6:14])


def test_cropping_gives_what_resizing_the_whole_and_cropping_would():
    whole = np.asarray(photo(120, 60).resize((40, 20), Image.Resampling.BICUBIC))[:, 10:30]
    assert np.array_equal(image_from_bytes(file_of(photo(120, 60), "PNG"), 20), whole)


def test_a_stored_photo_gives_the_stored_image():
    """Integer arithmetic: these bytes are the same on every CPU for one Pillow version; a change is a new recipe."""
    image = image_from_bytes(FILES["png"], 4)
    assert image[0].tolist() == [[93, 149, 108], [166, 169, 57], [134, 147, 141], [110, 138, 152]]
    assert zlib.crc32(image.tobytes()) == 3474464630


FIRST = Framing(decode_rule=1)
LARGE = {
    "baseline": file_of(photo(1000, 640), "JPEG", quality=95),
    "progressive": file_of(photo(1000, 640), "JPEG", quality=95, progressive=True),
    "4:4:4": file_of(photo(1000, 640), "JPEG", quality=95, subsampling=0),
    "4:2:2": file_of(photo(1000, 640), "JPEG", quality=95, subsampling=1),
    "grey": file_of(photo(1000, 640).convert("L"), "JPEG", quality=95),
    "cmyk": file_of(photo(1000, 640).convert("CMYK"), "JPEG", quality=95),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize(("size", "side"), [(32, 80), (64, 160), (96, 320), (160, 320), (200, 640), (640, 640)])
def test_a_large_jpeg_is_scaled_by_its_decoder_to_at_least_twice_the_target(kind, size, side):
    by_rule = image_from_bytes(LARGE[kind], size)
    scaled = rgb_from_bytes(LARGE[kind], at_least=side)
    assert min(scaled.size) == side
    assert np.array_equal(by_rule, image_from_bytes(file_of(scaled, "PNG"), size))
    assert np.abs(by_rule.astype(int) - image_from_bytes(LARGE[kind], size, FIRST)).mean() < 2.5


@pytest.mark.parametrize("kind", LARGE)
def test_the_first_rule_decodes_every_pixel_of_a_jpeg(kind):
    whole = file_of(rgb_from_bytes(LARGE[kind]), "PNG")
    assert np.array_equal(image_from_bytes(LARGE[kind], 32, FIRST), image_from_bytes(whole, 32))
    assert not np.array_equal(image_from_bytes(LARGE[kind], 32), image_from_bytes(whole, 32))


@pytest.mark.parametrize("kind", [name for name in FILES if "jpeg" not in name])
def test_the_rules_differ_for_a_jpeg_alone(kind):
    assert np.array_equal(image_from_bytes(FILES[kind], 4), image_from_bytes(FILES[kind], 4, FIRST))


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_jpeg_that_is_scaled_is_refused_when_it_was_cut_and_ended(kind):
    data = LARGE[kind]
    scan = data.index(b"\xff\xda")
    with pytest.raises(InputError, match=r"truncated or damaged|cut off in its header"):  # versions of Pillow differ
        image_from_bytes(data[:scan] + b"\xff\xd9", 32)
    for cut in range(scan + len(data) // 20, len(data) - 64, len(data) // 20):
        with pytest.raises(InputError, match="truncated or damaged"):
            image_from_bytes(data[:cut] + b"\xff\xd9", 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_that_is_scaled_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    scaled = rgb_from_bytes(file_of(photo(1000, 640), "JPEG", quality=95), at_least=80)
    turned = scaled if orientation == 1 else scaled.transpose(decode._TRANSPOSE_OF_ORIENTATION[orientation])
    data = file_of(photo(1000, 640), "JPEG", quality=95, exif=exif.tobytes())
    assert np.array_equal(image_from_bytes(data, 32), image_from_bytes(file_of(turned, "PNG"), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8, 0] = 255  # red top left
    upright[:8, 8:, 1] = 255  # green top right
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    data = file_of(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), **options)
    assert np.abs(image_from_bytes(data, 16).astype(int) - upright).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_a_header_is_that_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.new("RGB", (9, 5)), "JPEG", exif=exif.tobytes())
    size = decode.size_from_header(io.BytesIO(data), "x")
    assert size == rgb_from_bytes(data).size == ((9, 5) if orientation < 5 else (5, 9))


def test_a_bmp_of_runs_is_refused():
    with pytest.raises(InputError, match="run-length coded BMP is not accepted"):
        image_from_bytes(bmp_of_runs(4), 16)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_unreadable_exif_means_upright(exif):
    plain = file_of(photo(), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(image_from_bytes(data, 32), image_from_bytes(plain, 32))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_257_and_rounded(kind):
    values = np.array([[0, 65535], [128, 129]], np.uint16)
    grey = image_from_bytes(file_of(Image.fromarray(values), kind), 2)
    assert grey[..., 0].tolist() == [[0, 255], [0, 1]]
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_big_endian_16_bit_grey_is_read_alike():
    values = np.array([[0, 65535], [32768, 129]], ">u2")
    assert image_from_bytes(tiff_of(2, 2, [values.tobytes()], bits=16), 2)[..., 0].tolist() == [[0, 255], [128, 1]]


def test_32_bit_grey_is_refused_by_name():
    with pytest.raises(InputError, match="floating-point greyscale is not supported"):
        image_from_bytes(tiff_of(2, 2, [bytes(16)], bits=32, sample_format=3), 2)
    with pytest.raises(InputError, match="32-bit integer greyscale is not supported"):
        image_from_bytes(tiff_of(2, 2, [bytes(16)], bits=32, sample_format=2), 2)


RAMP = np.arange(16, dtype=np.uint8).repeat(16).reshape(16, 16)
PLANES = [np.roll(RAMP, shift).tobytes() for shift in (0, 5, 9, 3)]
MISREAD = {
    "greyscale of 12 bits": ([bytes(384)], {"bits": 12, "order": "<"}),
    "greyscale of 16 bits whose 0 is white": ([bytes(512)], {"bits": 16, "photometric": 0, "order": "<"}),
    "numbers with a sign": ([bytes(256)], {"sample_format": 2}),
    "16 bits in planes, not compressed": (
        [bytes(512)] * 3, {"bits": (16, 16, 16), "samples": 3, "photometric": 2, "planar": 2}),
    "8 bits in planes, not compressed": (
        PLANES[:3], {"bits": (8, 8, 8), "samples": 3, "photometric": 2, "planar": 2, "fill_order": 2}),
    "colours of 8 bits in its palette": ([RAMP.tobytes()], {"photometric": 3, "palette": (*range(256),) * 3}),
    "CIELab in planes": (PLANES[:3], {"bits": (8, 8, 8), "samples": 3, "photometric": 8, "planar": 2}),
    "grey and alpha in planes": (
        [zlib.compress(plane) for plane in PLANES[:2]],
        {"bits": (8, 8), "samples": 2, "planar": 2, "compression": 8, "extra": 2}),
    "YCbCr of less colour, not compressed": (
        [bytes(1000)], {"bits": (8, 8, 8), "samples": 3, "photometric": 6}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISREAD)
def test_a_tiff_whose_pixels_pillow_would_read_wrongly_is_refused(kind):
    planes, tags = MISREAD[kind]
    with pytest.raises(InputError, match=f"a TIFF of {kind} is not supported: save it as PNG, or with 8 bits"):
        image_from_bytes(tiff_of(16, 16, planes, **tags), 16)


def test_a_tiff_whose_pixels_are_left_out_is_refused():
    with pytest.raises(InputError, match=r"truncated or damaged \(0 of its 1 parts are there\)"):
        image_from_bytes(tiff_of(16, 16, [RAMP.tobytes()], offsets=[0]), 16)


@pytest.mark.parametrize("missing", [1, 2, 500, 1000])
def test_a_tiff_whose_jpeg_ends_early_is_refused(missing):
    data = bytearray(file_of(photo(), "TIFF", compression="jpeg", quality=95))
    with Image.open(io.BytesIO(data)) as image:
        (offset,), (size,) = image.tag_v2[273], image.tag_v2[279]
    data[offset + size - missing : offset + size] = bytes(missing)
    with pytest.raises(InputError, match=r"truncated or damaged \(0 of its 1 parts are there\)"):
        image_from_bytes(bytes(data), 32)


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_of_8_bits_in_planes_is_read(compression):
    planes = [zlib.compress(plane) if compression == 8 else plane for plane in PLANES[:3]]
    tags = {"bits": (8, 8, 8), "samples": 3, "photometric": 2, "planar": 2, "compression": compression}
    expected = np.stack([np.frombuffer(plane, np.uint8).reshape(16, 16) for plane in PLANES[:3]], axis=-1)
    np.testing.assert_array_equal(image_from_bytes(tiff_of(16, 16, planes, **tags), 16), expected)


def test_a_tiff_with_a_palette_is_read():
    palette = np.array([[7, 80, 255], [0, 3, 99]] * 128, np.uint8).T
    found = image_from_bytes(
        tiff_of(16, 16, [RAMP.tobytes()], photometric=3, palette=(257 * palette.ravel().astype(int)).tolist()), 16
    )
    np.testing.assert_array_equal(found, palette.T[RAMP.reshape(16, 16)])


def test_a_grey_tiff_of_8_bits_whose_0_is_white_is_read():
    found = image_from_bytes(tiff_of(16, 16, [RAMP.tobytes()], photometric=0), 16)
    np.testing.assert_array_equal(found[..., 1], 255 - RAMP)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_blended_over_white(kind):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = [[0, 255], [128, 64]]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = image_from_bytes(file_of(Image.fromarray(pixels), kind, **options), 2)
    alpha = pixels[..., 3:] / 255
    assert np.abs(image - (alpha * [200, 0, 0] + (1 - alpha) * 255)).max() <= 0.51


def test_grey_with_alpha_is_blended_over_white():
    image = image_from_bytes(png(np.array([[[0, 0], [0, 255]], [[0, 0], [50, 255]]], np.uint8)), 2)
    assert image[..., 1].tolist() == [[255, 0], [255, 50]]


def test_a_transparent_palette_entry_or_colour_becomes_white():
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    red_gone = [[[255, 255, 255], [0, 0, 255]], [[0, 0, 255], [255, 255, 255]]]
    assert image_from_bytes(file_of(palette, "PNG", transparency=0), 2).tolist() == red_gone
    assert image_from_bytes(file_of(palette, "PNG", transparency=b"\0\xff"), 2).tolist() == red_gone
    assert image_from_bytes(file_of(palette, "GIF", transparency=0), 2).tolist() == red_gone
    colour = np.array(red_gone, np.uint8)
    colour[0, 0] = colour[1, 1] = [255, 0, 0]
    assert image_from_bytes(png(colour, transparency=(255, 0, 0)), 2).tolist() == red_gone


def test_a_transparent_16_bit_grey_becomes_white():
    values = np.array([[1000, 2000], [1000, 0]], np.uint16)
    assert image_from_bytes(png(values, transparency=1000), 2)[..., 0].tolist() == [[255, 8], [255, 0]]


def test_cmyk_becomes_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for data in (file_of(cyan, "TIFF"), file_of(cyan, "JPEG")):
        assert np.abs(image_from_bytes(data, 16).astype(int) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr"])
def test_other_colour_models_become_rgb(mode):
    data = file_of(photo().convert(mode), "JPEG" if mode == "YCbCr" else "PNG")
    assert image_from_bytes(data, 24).shape == (24, 24, 3)


def test_only_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = file_of(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert image_from_bytes(data, 8)[0, 0].tolist() == [255, 0, 0], kind


def test_one_pixel_is_an_image():
    assert image_from_bytes(png(np.full((1, 1, 3), 77, np.uint8)), 5).tolist() == np.full((5, 5, 3), 77).tolist()


def test_a_whole_image_is_given_upright_at_its_own_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = rgb_from_bytes(file_of(photo(90, 70), "JPEG", exif=exif))
    assert (upright.mode, upright.size) == ("RGB", (70, 90))


def test_a_jpeg_to_look_at_is_decoded_smaller_but_not_too_small():
    data = file_of(photo(1600, 800), "JPEG")
    assert rgb_from_bytes(data, at_least=200).size == (400, 200)
    assert rgb_from_bytes(data, at_least=500).size == (1600, 800)
    assert rgb_from_bytes(FILES["png"], at_least=8).size == (90, 70)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (60_000, 3)])
def test_a_very_long_thin_image_costs_little_memory(size):
    code = (
        "import io, resource, sys\n"
        "from PIL import Image\n"
        "from dmsh_serving.images.decode import image_from_bytes\n"
        "buffer = io.BytesIO()\n"
        f"Image.new('RGB', {size}, (9, 8, 7)).save(buffer, 'PNG')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = image_from_bytes(buffer.getvalue(), 1024)\n"
        "assert (image == [9, 8, 7]).all()\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", FILES)
def test_a_truncated_file_never_gives_half_an_image(kind):
    """Every cut is an error; only where nothing but an end marker is missing may the whole image come out."""
    data = FILES[kind]
    whole = image_from_bytes(data, 32)
    cuts = sorted({*range(1, 60), *range(60, len(data), max(1, len(data) // 150)), *range(len(data) - 40, len(data))})
    for cut in cuts:
        try:
            image = image_from_bytes(data[:cut], 32)
        except InputError:
            continue
        assert np.array_equal(image, whole), cut
        assert len(data) - cut <= 4


def test_a_damaged_png_chunk_is_refused():
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 4
    with pytest.raises(InputError, match="truncated or damaged"):
        image_from_bytes(bytes(data), 32)


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(MAX_PIXELS // 8192 + 1, 8192), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (65_536, 1)]
)
def test_a_decompression_bomb_is_refused_from_its_header(size, monkeypatch, recwarn):
    monkeypatch.setattr(decode, "_rgb", lambda image: pytest.fail("pixels were decoded"))
    with pytest.raises(InputError, match=r"too large|too many pixels"):
        image_from_bytes(png_header(*size), 32)
    assert not recwarn.list


def test_the_pixel_cap_is_below_the_size_at_which_pillow_warns():
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, I am not an image", "not an image"),
        (bytes(1000), "not an image"),
        (b"%PDF-1.7 ...", "PDF is not accepted; JPEG, PNG, WEBP, BMP, GIF, TIFF"),
        (b"<?xml version='1.0'?>", "XML or SVG is not accepted"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not accepted"),
        (b"%!PS-Adobe-3.0", "PostScript is not accepted"),
        (b"P6 1 1 255 ...", "PPM is not accepted"),
        (file_of(photo(), "PPM"), "PPM is not accepted"),
        (file_of(photo(), "ICO"), "icon is not accepted"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL is not accepted"),
        (b"\0\0\0\x1cftypavif\0", "AVIF is not accepted"),
        (b"\0\0\0\x1cftypheic\0", "HEIF is not accepted"),
    ],
)
def test_what_is_not_an_image_of_the_list_is_refused_by_name(data, message, monkeypatch):
    monkeypatch.setattr(decode, "FORMATS", ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"))
    with pytest.raises(InputError, match=f"^upload: .*{message}"):
        image_from_bytes(data, 32, name="upload")


def test_a_file_over_the_cap_is_refused_unread(monkeypatch):
    monkeypatch.setattr(decode, "_open", None)
    with pytest.raises(InputError, match=r"^upload: the file has 67,108,865 bytes, at most 67,108,864 are taken$"):
        image_from_bytes(bytes(MAX_FILE_BYTES + 1), 32, name="upload")


def test_damage_and_size_are_told_by_the_error_alone_without_warnings(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    jpeg = FILES["jpeg"][:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + FILES["jpeg"][2:]
    (tmp_path / "exif.jpg").write_bytes(jpeg)
    (tmp_path / "large.png").write_bytes(png_header(10_000, 10_000))
    code = (
        "import pathlib, sys\n"
        "from dmsh_serving.images.decode import image_from_bytes\n"
        "from dmsh_serving.errors import InputError\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "image_from_bytes((folder / 'exif.jpg').read_bytes(), 8)\n"
        "try:\n"
        "    image_from_bytes((folder / 'large.png').read_bytes(), 8)\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stderr == ""
    assert "10000 x 10000 pixels is too large" in done.stdout


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_an_image_size_out_of_range_is_refused(size):
    with pytest.raises(InputError, match="image_size"):
        image_from_bytes(FILES["png"], size)
    assert image_from_bytes(FILES["png"], 4096).shape == (4096, 4096, 3)


def test_the_number_of_pixels_is_told_before_they_are_decoded(monkeypatch):
    told = []

    def unread(image):
        assert told
        raise InputError("not decoded")

    monkeypatch.setattr(Image.Image, "load", unread)
    with Image.open(io.BytesIO(FILES["png"])) as image, pytest.raises(InputError, match="not decoded"):
        decode.rgb_from_bytes(FILES["png"], on_size=told.append)
    assert told == [image.width * image.height]


def test_memory_that_there_is_not_is_told_as_such_whatever_the_decoder_says(monkeypatch):
    def full(image, data, name):
        raise MemoryError

    with monkeypatch.context() as memory:
        memory.setattr(decode, "MAX_DECODE_BYTES", 1 << 60)
        assert image_from_bytes(FILES["png"], 8).shape == (8, 8, 3)
        with pytest.raises(MemoryShortError, match="x: the image needs too much memory to decode"):
            image_from_bytes(FILES["png"][:-30], 8, name="x")
    with pytest.raises(InputError, match="truncated or damaged"):
        image_from_bytes(FILES["png"][:-30], 8, name="x")
    monkeypatch.setattr(decode, "check_opened", full)
    with pytest.raises(MemoryShortError, match="x: the image needs too much memory to decode"):
        image_from_bytes(FILES["png"], 8, name="x")


def test_fault_06_thousands_of_malformed_files_leave_memory_flat():
    code = (
        "import io, os, random, resource, sys\n"
        "from PIL import Image\n"
        "from dmsh_serving.images.decode import image_from_bytes\n"
        "from dmsh_serving.errors import InputError\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"  # libtiff writes there by itself
        "files = []\n"
        "for kind in ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'):\n"
        "    buffer = io.BytesIO()\n"
        "    Image.effect_noise((64, 64), 50).save(buffer, kind)\n"
        "    files.append(buffer.getvalue())\n"
        "random.seed(0)\n"
        "refused = 0\n"
        "for turn in range(10_000):\n"
        "    data = bytearray(random.choice(files))\n"
        "    for _ in range(random.randint(1, 30)):\n"
        "        data[random.randrange(min(len(data), random.choice([60, 10_000])))] = random.randrange(256)\n"
        "    try:\n"
        "        image = image_from_bytes(bytes(data[: random.randint(len(data) // 2, len(data))]), 16)\n"
        "        assert image.shape == (16, 16, 3)\n"
        "    except InputError:\n"
        "        refused += 1\n"
        "    if turn == 2000:\n"
        "        warm = int(open('/proc/self/statm').read().split()[1])\n"
        "grown = (int(open('/proc/self/statm').read().split()[1]) - warm) * resource.getpagesize() / 2**20\n"
        "print(refused, grown)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    refused, grown = map(float, done.stdout.split())
    assert refused > 5000
    assert grown < 24, "MiB"


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_newer_formats_are_read_where_their_support_is_there(form):
    if form not in decode.FORMATS:
        pytest.skip(f"no support for {form} here")
    found = image_from_bytes(file_of(Image.new("RGB", (40, 30), (200, 20, 20)), form), 16)
    assert np.abs(found.astype(int) - [200, 20, 20]).max() <= 3


def test_a_format_whose_support_is_not_there_is_named_with_what_reads_it(monkeypatch):
    monkeypatch.setattr(decode, "FORMATS", ("JPEG",))
    with pytest.raises(InputError, match=r"HEIF is not accepted \(pip install pillow-heif reads it\); JPEG are"):
        image_from_bytes(b"\0\0\0\x1cftypheic....", 16)


def test_a_damaged_file_of_a_format_that_is_read_is_not_called_unknown(monkeypatch):
    monkeypatch.setattr(decode, "FORMATS", ("JPEG", "AVIF"))
    with pytest.raises(InputError, match="not an image, or one cut off"):
        image_from_bytes(b"\0\0\0\x1cftypavif....", 16)


def test_decoders_are_given_one_thread():
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    assert (AvifImagePlugin.DEFAULT_MAX_THREADS, pillow_heif.options.DECODE_THREADS) == (1, 1)
