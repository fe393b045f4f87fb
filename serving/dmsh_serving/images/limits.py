"""What decoding one file may cost, told from its length and header before a pixel is decoded."""

from typing import Any, Final

from PIL import Image, ImageFile

from dmsh_serving.errors import InputError
from dmsh_serving.images.avif import is_cropped

__all__ = [
    "DEEP_GREY",
    "MAX_BLOCKS",
    "MAX_DECODE_BYTES",
    "MAX_FILE_BYTES",
    "MAX_PACKED",
    "MAX_PIXELS",
    "check_blocks",
    "check_file",
    "check_memory",
    "check_opened",
    "check_size",
]

MAX_FILE_BYTES: Final = 1 << 26  # 64 MiB, which is also the most that a newer Triton takes over HTTP by default
MAX_PIXELS: Final = 1 << 26  # 67 million: every common camera
MAX_SIDE: Final = 65_535  # JPEG's own limit; memory is needed per row, not only per pixel
# 10 bytes per pixel of the largest image, which is what a progressive JPEG without subsampling needs: 6 of coefficients
# and 4 of RGB. So every JPEG in RGB or grey fits; what needs more per pixel must have fewer pixels.
MAX_DECODE_BYTES: Final = 10 * MAX_PIXELS
MAX_BLOCKS: Final = 65_536  # of a PNG, or before the first frame of a GIF: Pillow reads each in Python, 5 us a block
MAX_PACKED: Final = 64  # profiles and compressed texts of a PNG, of which each may inflate to 1 MiB, 1 ms
_PACKED: Final = (b"iCCP", b"zTXt", b"iTXt")

DEEP_GREY: Final = ("I;16", "I;16B", "I;16L", "I;16N")
_ALPHA: Final = ("RGBA", "LA", "PA", "RGBa", "La")
# Bytes per pixel that a decoder holds beside Pillow's image, measured: the canvases of libwebp, the planes of a video
# frame and their RGB.
_DECODER_BYTES: Final = {"WEBP": 13, "AVIF": 7, "HEIF": 5}
_TILE_WIDTH, _TILE_HEIGHT, _ROWS_PER_STRIP, _SAMPLES, _BITS = 322, 323, 278, 277, 258
_WIDTH, _HEIGHT, _STRIP_OFFSETS, _TILE_OFFSETS, _PLANAR, _SEPARATE = 256, 257, 273, 324, 284, 2
_STRIP_BYTES, _TILE_BYTES, _JPEG, _END_OF_JPEG = 279, 325, 7, b"\xff\xd9"
_COMPRESSION, _RAW, _PHOTOMETRIC, _WHITE_IS_ZERO, _YCBCR, _SUBSAMPLING = 259, 1, 262, 0, 6, 530
_PALETTE, _SAMPLE_FORMAT, _SIGNED, _FILL_ORDER, _REVERSED = 320, 339, 2, 266, 2


def check_file(data: bytes, name: str) -> None:
    """Refuse a file that is empty or has more than ``MAX_FILE_BYTES``."""
    if not data:
        raise InputError(f"{name}: the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{name}: the file has {len(data):,} bytes, at most {MAX_FILE_BYTES:,} are taken")


def check_blocks(data: bytes, name: str) -> None:
    """Refuse a PNG or a GIF that a flood of blocks makes slow to open; anything else passes."""
    blocks, packed = 0, 0
    if data.startswith(b"\x89PNG"):
        blocks, packed = _png_blocks(data)
    elif data.startswith(b"GIF8"):
        blocks = _gif_blocks(data)
    if blocks > MAX_BLOCKS or packed > MAX_PACKED:
        most = f"{MAX_BLOCKS} blocks" if blocks > MAX_BLOCKS else f"{MAX_PACKED} profiles and compressed texts"
        raise InputError(f"{name}: the file has more than {most}: save it again without metadata")


def _png_blocks(data: bytes) -> tuple[int, int]:
    """Count the chunks of a PNG, to one more than ``MAX_BLOCKS``, and those of them that are compressed metadata."""
    position, blocks, packed = 8, 0, 0
    while position < len(data) and blocks <= MAX_BLOCKS and not data.startswith(b"IEND", position - 8):
        packed += data.startswith(_PACKED, position + 4)
        position += 12 + int.from_bytes(data[position : position + 4])
        blocks += 1
    return blocks, packed


def _gif_blocks(data: bytes) -> int:
    """Count what stands before the first frame of a GIF, to about one more than ``MAX_BLOCKS``."""
    flags = int.from_bytes(data[10:11])
    position = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    blocks = 0
    while position < len(data) and blocks <= MAX_BLOCKS and data[position] not in b",;":
        if data[position] != ord("!"):  # Pillow skips it
            position += 1
        else:
            position += 2
            while blocks <= MAX_BLOCKS and (size := int.from_bytes(data[position : position + 1])):
                position += 1 + size
                blocks += 1
            position += 1
        blocks += 1
    return blocks


def check_opened(image: Image.Image, data: bytes, name: str) -> None:
    """Refuse what ``data`` opened as, not decoded yet, for its size or memory, or if Pillow would misread it."""
    check_size(image.size, name)
    check_memory(image, name)
    if isinstance(image, ImageFile.ImageFile) and any(tile.codec_name in Image.DECODERS for tile in image.tile):
        raise InputError(f"{name}: run-length coded {image.format} is not accepted: save it uncompressed, or as PNG")
    if image.format == "AVIF" and is_cropped(data):
        raise InputError(f"{name}: an AVIF of which only a part is to be shown is not supported: save that part")
    if image.format == "TIFF":
        _check_strips(image, data, name)
        _check_samples(image, name)


def _check_samples(image: Image.Image, name: str) -> None:
    """Refuse a TIFF whose pixels Pillow reads, and reads wrongly."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # only a TIFF has them
    bits, samples, colour = max(tags.get(_BITS, (1,))), int(tags.get(_SAMPLES, 1)), tags.get(_PHOTOMETRIC)
    is_raw, is_in_planes = tags.get(_COMPRESSION, _RAW) == _RAW, tags.get(_PLANAR) == _SEPARATE
    wrong = {
        f"greyscale of {bits} bits": image.mode in DEEP_GREY and bits != 16,
        "greyscale of 16 bits whose 0 is white": image.mode in DEEP_GREY and colour == _WHITE_IS_ZERO,
        "colours of 8 bits in its palette": image.mode in ("P", "PA") and 0 < max(tags.get(_PALETTE, (0,))) < 256,
        "numbers with a sign": bits <= 16 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()),
        f"{bits} bits in planes, not compressed": (
            is_in_planes and is_raw and (bits > 8 or tags.get(_FILL_ORDER) == _REVERSED)
        ),
        "CIELab in planes": is_in_planes and image.mode == "LAB",
        "grey and alpha in planes": is_in_planes and samples == 2,
        "YCbCr of less colour, not compressed": (
            colour == _YCBCR and is_raw and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)
        ),
    }
    found = next((kind for kind, is_there in wrong.items() if is_there), None)
    if found:
        raise InputError(f"{name}: a TIFF of {found} is not supported: save it as PNG, or with 8 bits, interleaved")


def _check_strips(image: Image.Image, data: bytes, name: str) -> None:
    """Refuse a TIFF that has fewer strips or tiles than its size needs: Pillow would leave the rest black.

    One that is left out, as GDAL does it, begins at 0, where Pillow would take the file's own head for pixels. One
    that is a JPEG which ends early, libtiff fills with grey.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]  # only a TIFF has them
    width, height, across, down = _parts(tags)
    planes = int(tags.get(_SAMPLES, 1)) if tags.get(_PLANAR) == _SEPARATE else 1
    wanted = -(-width // max(1, across)) * -(-height // max(1, down)) * planes
    is_tiled = _TILE_WIDTH in tags
    offsets = tags.get(_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS, ())
    sizes = tags.get(_TILE_BYTES if is_tiled else _STRIP_BYTES, ())
    if tags.get(_COMPRESSION) == _JPEG:
        ends = (offset + size for offset, size in zip(offsets, sizes, strict=False) if offset > 0)
        there = sum(data[max(0, end - 8) : end].rstrip(b"\0\xff").endswith(_END_OF_JPEG) for end in ends)
    else:
        there = sum(offset > 0 for offset in offsets)
    if there < wanted:
        raise InputError(f"{name}: the image is truncated or damaged ({there} of its {wanted} parts are there)")


def _parts(tags: Any) -> tuple[int, int, int, int]:
    """Return width and height of a TIFF as stored, not as turned, which is Pillow's size, and of a strip or tile."""
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if _TILE_WIDTH in tags:
        return width, height, int(tags[_TILE_WIDTH]), int(tags.get(_TILE_HEIGHT, height))
    return width, height, width, min(int(tags.get(_ROWS_PER_STRIP, height)), height)


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse an image without pixels, or with more than ``MAX_PIXELS``, or ``MAX_SIDE`` a side."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name}: {width} x {height} pixels: nothing to decode")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise InputError(
            f"{name}: {width} x {height} pixels is too large: at most {MAX_PIXELS} pixels, {MAX_SIDE} a side"
        )


def check_memory(image: Image.Image, name: str) -> None:
    """Refuse an opened, not yet decoded image that needs more than ``MAX_DECODE_BYTES`` until it is RGB and upright."""
    stored = _bytes_per_pixel(image.mode)
    while_decoding = stored + _DECODER_BYTES.get(image.format or "", 0)
    while_converting = 2 * stored + _conversion_bytes(image)  # twice: turning it upright is a copy
    pixels = image.width * image.height
    needed = pixels * max(while_decoding, while_converting)
    if image.format == "TIFF":
        needed = max(needed, pixels * stored + _tile_bytes(image))
    if needed > MAX_DECODE_BYTES:
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels of this kind ({image.format}, {image.mode}) need "
            f"{needed >> 20:,} MiB to decode, at most {MAX_DECODE_BYTES >> 20} are given: make the image smaller"
        )


def _bytes_per_pixel(mode: str) -> int:
    """Return what Pillow stores of a pixel; it pads two and three bands to four."""
    if mode in DEEP_GREY:
        return 2
    return 1 if mode in ("1", "L", "P") else 4


def _conversion_bytes(image: Image.Image) -> int:
    """Return the bytes per pixel that the way from the decoded image to RGB adds."""
    if image.mode in DEEP_GREY:
        return 1 + 4
    if image.mode == "RGBA":
        return 1 + 4  # the mask, and RGB
    if image.mode in _ALPHA or "transparency" in image.info:
        return 4 + 1 + 4  # RGBA first
    return 0 if image.mode == "RGB" else 4


def _tile_bytes(image: Image.Image) -> int:
    """Return the size of one decoded tile or strip of a TIFF, which libtiff holds whole."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # only a TIFF has them
    _, _, across, down = _parts(tags)
    return across * down * int(tags.get(_SAMPLES, 1)) * int(max(tags.get(_BITS, (8,)))) // 8
