"""File bytes -> image: the one conversion, used for galleries, training, parity and serving alike.

Everything here is integer arithmetic of one Pillow version, so the same bytes give the same image on every
machine. The rules, in order, of version 2; version 1 differs in rule 2 alone, as it says:

1. The format is recognised by content, never by name: JPEG, PNG, WebP, BMP (not run-length coded), GIF, TIFF; AVIF,
   if Pillow was built with it, and HEIC, if the package pillow-heif is installed; first frame only, and what that
   of a GIF leaves uncovered has colour 0 of its palette. What Pillow reads wrongly is refused: some kinds of TIFF, and
   an AVIF of which only a part is to be shown.
2. The file's size is checked, and from its header the pixels, the memory and the work that decoding will need,
   before a pixel is decoded. Truncated files are refused whole. A JPEG's decoder scales by 1/2, 1/4 or 1/8 as far as
   both sides stay at least twice image_size (version 1: never), which makes a photograph several times as fast.
3. EXIF orientation is applied, or XMP's where EXIF has none; an unreadable EXIF block means upright. Colour profiles
   are ignored.
4. Greyscale of 16 bits: v -> (v + 128) // 257, which is v / 257 rounded. Colour of 16 bits: the high byte.
5. Transparency (an alpha channel, or a transparent palette entry or colour) is blended over white. The transparent
   colour of a PNG in grey of 2 or 4 bits, or in colour of 16 bits, stays as it is: Pillow looks for it in 8 bits.
6. CMYK and the rest become RGB by Pillow's own conversion.
7. The framing, which is the checkpoint's own (see :mod:`.framing`): by default the central square, its side the
   image's short side, is resampled (bicubic) to image_size; its offset may be half a pixel. This is "resize the short
   side, crop the centre" with nothing to round, and costs nothing for a very long image. With ``pad`` the long side
   is resampled to image_size, the short one in proportion, rounded to whole pixels, and lies centred on white.
"""

import contextlib
import io
import warnings
import zlib
from collections.abc import Callable
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, JpegImagePlugin, UnidentifiedImageError, features

from dmsh_serving.errors import InputError, MemoryShortError
from dmsh_serving.images import limits
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.jpeg import check_work, load_whole, scans_of, shows_first_scan
from dmsh_serving.images.limits import (
    MAX_DECODE_BYTES,
    MAX_FILE_BYTES,
    check_blocks,
    check_file,
    check_opened,
    check_size,
)

__all__ = [
    "FORMATS",
    "MAX_FILE_BYTES",
    "decode_recipe",
    "image_from_bytes",
    "image_from_pixels",
    "rgb_from_bytes",
    "size_from_header",
]

# Rules 1 to 6 by version. Fingerprints are made of these texts: one that was used never changes.
_RECIPES: Final = {
    1: "dmsh-decode/1: first frame, exif orientation, 16-bit grey (v+128)//257, alpha over white, rgb",
    2: "dmsh-decode/2: first frame, jpeg scaled by dct to at least twice the side, exif orientation, "
    "16-bit grey (v+128)//257, alpha over white, rgb",
}
MAX_IMAGE_SIZE: Final = 4096


def _formats() -> tuple[str, ...]:
    """Return the formats that are read here: some depend on how Pillow was built, and on a plugin.

    A decoder is given one thread: as many images as there are processors are decoded at once, each thread takes memory,
    and one that cannot be started would look like a damaged image. The pixels are the same.
    """
    found = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
    if features.check("avif"):
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        found.append("AVIF")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        pillow_heif.options.DECODE_THREADS = 1
        found.append("HEIF")
    return tuple(found)


FORMATS: Final = _formats()

_ORIENTATION_TAG: Final = 0x0112
_TRANSPOSE_OF_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEAD_BYTES: Final = 1 << 20
_JPEG: Final = b"\xff\xd8"
_BLOCKS: Final = (b"\x89PNG", b"GIF8")
_DESCRIBING: Final = (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_LYING: Final = (5, 6, 7, 8)  # orientations that exchange width and height
_REFUSED_FORMATS: Final = (
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"P5", "PGM"),
    (0, b"P6", "PPM"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"%!PS", "PostScript"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"PK\x03\x04", "ZIP archive"),
)
_PLUGIN_OF: Final = {"HEIF": "pillow-heif"}
_BAND_ROWS: Final = 256  # rows of 16-bit grey converted at a time, so that the 32-bit copy stays small
_UNSUPPORTED_MODES: Final = {"I": "32-bit integer greyscale", "F": "floating-point greyscale"}

# Pillow warns about large files, but our own cap is lower, and about damage, which is an error or rule 3 here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode_recipe(framing: Framing) -> str:
    """Return the rules of this module in words, for a fingerprint: other rules give other codes."""
    return f"{_RECIPES[framing.decode_rule]}, {framing.recipe}"


def image_from_bytes(
    data: bytes,
    image_size: int,
    framing: Framing = Framing(),
    *,
    name: str = "image",
    on_size: Callable[[int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Convert one image file to RGB, image_size x image_size, by the rules of this module.

    Args:
        data: the whole file.
        image_size: side of the result in pixels, 1 to ``MAX_IMAGE_SIZE``.
        framing: the version of the rules, and rule 7, of the checkpoint that the image is for.
        name: what to call the file in an error.
        on_size: called with the number of pixels once it is known to be allowed, before any is decoded.

    Returns:
        (image_size, image_size, 3) uint8, RGB.

    Raises:
        InputError: empty, not an image, a format off the list, truncated or damaged, or too large.
    """
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise InputError(f"image_size = {image_size} is out of range: 1 to {MAX_IMAGE_SIZE} pixels")
    picture = rgb_from_bytes(data, name=name, at_least=framing.least_side(image_size), on_size=on_size)
    return np.asarray(_framed(picture, image_size, framing))


def rgb_from_bytes(
    data: bytes, *, name: str = "image", at_least: int | None = None, on_size: Callable[[int], None] | None = None
) -> Image.Image:
    """Decode one image file to RGB, upright and at its own size: rules 1 to 6 of this module.

    With ``at_least``, in pixels, a large JPEG comes smaller, each side at least that long: several times faster.
    ``on_size`` is called with the number of pixels once it is known to be allowed, before any is decoded.

    Raises:
        InputError: empty, not an image, a format off the list, truncated or damaged, or too large; its subclass
            MemoryShortError if the memory of the moment does not do.
    """
    check_file(data, name)
    try:
        check_blocks(data, name)
        scans = scans_of(data, name)
        with _open(data, name) as image:
            check_opened(image, data, name)
            if on_size is not None:
                on_size(image.width * image.height)
            if scans:
                check_work(scans, image.size, name)
            if image.format == "PNG":
                _check_png(data)
            if at_least is not None:
                image.draft("RGB", (at_least, at_least))
            if isinstance(image, JpegImagePlugin.JpegImageFile) and scans:
                load_whole(image, data, scans)
            else:
                image.load()
            if image.mode in _UNSUPPORTED_MODES:
                raise InputError(f"{name}: {_UNSUPPORTED_MODES[image.mode]} is not supported, convert it to 8 bits")
            return _rgb(_upright(image))
    except InputError:
        raise
    except Exception as error:  # a decoder fed hostile bytes raises nearly anything
        if isinstance(error, MemoryError) or not _memory_suffices():
            raise MemoryShortError(f"{name}: the image needs too much memory to decode") from None
        raise InputError(f"{name}: the image is truncated or damaged ({error or type(error).__name__})") from error


def _memory_suffices() -> bool:
    """Say whether there is memory for any image: a decoder that gets none calls the image damaged, in its own words."""
    try:
        np.empty(MAX_DECODE_BYTES, np.uint8)
    except MemoryError:
        return False
    return True


def image_from_pixels(
    pixels: npt.NDArray[np.uint8], image_size: int, framing: Framing = Framing()
) -> npt.NDArray[np.uint8]:
    """Bring decoded pixels (H, W, 3) uint8, RGB, to (image_size, image_size, 3) by rule 7 of this module."""
    return np.asarray(_framed(Image.fromarray(pixels), image_size, framing))


def size_from_header(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return width and height in pixels of an image file, upright, as its header states them: no pixel is decoded.

    Raises:
        InputError: too large to be decoded; whatever else is wrong with it may raise nearly any error.
    """
    head = file.read(_HEAD_BYTES)
    if head.startswith(_BLOCKS) or (head.startswith(_JPEG) and not shows_first_scan(head, name)):
        head += file.read()
        check_blocks(head, name)
        scans_of(head, name)
    is_png = head.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(_without_pixels(head)) if is_png else file, formats=FORMATS) as image:
        check_size(image.size, name)
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG)  # a PNG's own method looks behind its pixels
        width, height = image.size
        is_turned = image.format == "TIFF"  # Pillow gives its size as it will be
        return (height, width) if orientation in _LYING and not is_turned else (width, height)


def _without_pixels(png: bytes) -> bytes:
    """Return a PNG with its header and metadata alone, also those that stand behind its pixels."""
    kept, position = [png[:8]], 8
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4])
        if png[position + 4 : position + 8] in _DESCRIBING:
            kept.append(png[position:end])
        position = end
    return b"".join([*kept, bytes(4), b"IDAT", zlib.crc32(b"IDAT").to_bytes(4)])


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: far too many pixels: at most {limits.MAX_PIXELS} are decoded") from error
    except UnidentifiedImageError as error:
        for offset, magic, kind in _REFUSED_FORMATS:
            if data.startswith(magic, offset) and kind not in FORMATS:
                how = f" (pip install {_PLUGIN_OF[kind]} reads it)" if kind in _PLUGIN_OF else ""
                raise InputError(f"{name}: {kind} is not accepted{how}; {', '.join(FORMATS)} are") from error
        raise InputError(f"{name}: not an image, or one cut off in its header") from error


def _check_png(data: bytes) -> None:
    """Check every chunk's CRC and that the end chunk is there: decoding alone ignores both."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # rule 3: damaged metadata beside sound pixels
        orientation = 1
    transpose = _TRANSPOSE_OF_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    if transpose is None:
        return image
    transparency = image.info.get("transparency")
    turned = image.transpose(transpose)
    if transparency is not None:
        turned.info["transparency"] = transparency
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in limits.DEEP_GREY:
        return _rgb_from_deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layered.size, (255, 255, 255))
        white.paste(layered, mask=layered.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _rgb_from_deep_grey(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    grey = Image.new("L", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        values = np.asarray(image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))).astype(np.uint32)
        band = ((values + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            band[values == transparent] = 255
        grey.paste(Image.fromarray(band), (0, top))
    return grey.convert("RGB")


def _framed(image: Image.Image, image_size: int, framing: Framing) -> Image.Image:
    width, height = image.size
    interpolation = Image.Resampling[framing.interpolation.upper()]
    if framing.crop == "centre":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((image_size, image_size), interpolation, box=box)
    longest = max(width, height)
    across, down = (max(1, (side * image_size + longest // 2) // longest) for side in image.size)
    square = Image.new("RGB", (image_size, image_size), (255, 255, 255))
    square.paste(image.resize((across, down), interpolation), ((image_size - across) // 2, (image_size - down) // 2))
    return square
