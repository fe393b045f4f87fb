"""Small files that decoders work on for seconds to hours; the larger ``count``, the longer."""

import struct
import zlib


def _box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full_box(kind, version, body):
    return _box(kind, struct.pack(">I", version << 24) + body)


def avif_of_many_items(count):
    """10 bytes an item; libavif looks each up among all that it has, and Pillow holds the GIL meanwhile."""
    items = b"".join(struct.pack(">IHHH", number + 1, 0, 0, 0) for number in range(count))
    places = _full_box(b"iloc", 2, struct.pack(">BBI", 0, 0, count) + items)
    handler = _full_box(b"hdlr", 0, struct.pack(">I4s", 0, b"pict") + bytes(13))
    first = _full_box(b"pitm", 1, struct.pack(">I", 1))
    kind = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
    return kind + _full_box(b"meta", 0, handler + first + places)


def tiff_of_many_strips(count):
    """1 byte a strip, of which Pillow makes a tuple; the image has 2 rows."""
    offset = 8 + count
    tags = [
        (256, 4, 1, 4), (257, 4, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 1, count, 8),
        (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 4),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", offset) + bytes(count) + directory


def png_of_many_profiles(count, kind=b"iCCP"):
    """1 KB a profile or compressed text, which inflates to 1 MiB."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packed = zlib.compress(bytes((1 << 20) - 16), 9)
    profile = chunk(kind, {b"iTXt": b"a\0\1\0\0\0"}.get(kind, b"a\0\0") + packed)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + profile * count + pixels


def bmp_of_runs(count):
    """4 bytes a row of 65,535 pixels, run-length coded; Pillow fills each in Python."""
    rows, palette = b"\1\0\0\0" * count, bytes(4 * 256)
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 65_535, count, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows


def tiff_of_bad_rows(rows):
    """1 by ``rows`` pixels, whose strips of fax code are one and no code: libtiff complains of each row."""
    strips, code = 64, b"\1" * 1100
    offsets = 8 + 2 + 12 * 10 + 4
    tags = [
        (256, 4, 1, 1), (257, 4, 1, rows), (258, 3, 1, 1), (259, 3, 1, 3), (262, 3, 1, 0), (273, 4, strips, offsets),
        (277, 3, 1, 1), (278, 4, 1, -(-rows // strips)), (279, 4, strips, offsets + 4 * strips), (292, 4, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    places = struct.pack("<I", offsets + 8 * strips) * strips + struct.pack("<I", len(code)) * strips
    return b"II*\0" + struct.pack("<I", 8) + directory + places + code


SLOW = {"AVIF": avif_of_many_items(300_000), "TIFF": tiff_of_many_strips(1_000_000)}
"""Each takes more than 4 s; of 3 and 1 MB."""
