"""JPEG files before and while they are decoded: their work is bounded, and a file cut short is refused.

libjpeg fills in what is missing of a file that ends early, and Pillow drops the warning. So the markers are read
here: they say how much work the file is, and where its last scan ends.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image, JpegImagePlugin

from dmsh_serving.errors import InputError

__all__ = [
    "MAX_SCANNED_PIXELS",
    "MAX_SCANS",
    "MAX_SEGMENTS",
    "MAX_STRAY_BYTES",
    "Scans",
    "check_work",
    "load_whole",
    "scans_of",
    "shows_first_scan",
]

MAX_SCANS: Final = 64  # libjpeg writes 10, MozJPEG at most about 20; each scan visits every block of the image
MAX_SCANNED_PIXELS: Final = 1 << 30  # pixels x scans: 16 scans of the largest image
MAX_SEGMENTS: Final = 4096  # files have tens; extended metadata of 64 KiB a segment reaches hundreds
MAX_STRAY_BYTES: Final = 65_536  # of no segment, before the first scan: Pillow looks at each in Python, 0.5 us a byte

_MARKER: Final = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # not a stuffed zero, not a restart: those are scan data
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = 0xC2
_ARITHMETIC: Final = 0xC9  # and above
# libjpeg reads up to 8 bytes ahead of the last block. All ones, with stuffing, are no Huffman code of any JPEG.
_AHEAD: Final = b"\xff\x00" * 8
_END_OF_IMAGE: Final = b"\xff\xd9"


@dataclass(frozen=True)
class Scans:
    """What the markers of a JPEG say: how many scans it has, and the offsets of the last and of the end marker.

    ``end`` is None if there is no end marker.
    ``complete`` is False if the scans do not bring every coefficient of every component in full: a progressive file
    that was cut between two scans.
    """

    count: int
    last: int
    end: int | None
    complete: bool


def scans_of(data: bytes, name: str) -> Scans | None:
    """Walk the markers of ``data`` as libjpeg does, decoding nothing; None if it is no JPEG.

    Raises:
        InputError: arithmetic coding, or more than ``MAX_SCANS`` scans, ``MAX_SEGMENTS`` marker segments or
            ``MAX_STRAY_BYTES`` bytes of none.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    count, last, end = 0, 0, None
    missing: set[tuple[int, int]] = set()  # (component, coefficient)
    progressive = False
    for kind, start, body in _segments(data, name):
        if kind == _END:
            end = start
        elif kind in _FRAMES and not missing:
            if kind >= _ARITHMETIC:  # no software writes it, and its decoder cannot wait for more data
                raise InputError(f"{name}: arithmetic-coded JPEG is not accepted: save it with Huffman codes")
            progressive = kind == _PROGRESSIVE
            missing = {(component, coefficient) for component in body[6::3] for coefficient in range(64)}
        elif kind == _SCAN and body:
            count, last = count + 1, start
            if count > MAX_SCANS:
                raise InputError(f"{name}: the JPEG has more than {MAX_SCANS} scans: save it again with fewer")
            first, final, low = (body[-3], body[-2], body[-1] & 15) if progressive and len(body) >= 3 else (0, 63, 0)
            if low == 0:
                missing -= {(component, k) for component in body[1:-3:2] for k in range(first, final + 1)}
    return Scans(count, last, end, complete=not missing)


def shows_first_scan(head: bytes, name: str) -> bool:
    """Say whether all that stands before the pixels is in ``head``, the first bytes of a JPEG; else give more of it.

    Raises:
        InputError: as of :func:`scans_of`, what stands there is slow to read.
    """
    return any(kind == _SCAN for kind, _, _ in _segments(head, name))


def _segments(data: bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield each marker: its kind, its offset, and the body of its segment; nothing after the end marker."""
    position, stray, scanning = 2, 0, False
    for _ in range(MAX_SEGMENTS):
        end = len(data) if scanning else min(len(data), position + MAX_STRAY_BYTES + 2)
        marker = _MARKER.search(data, position, end)
        if not scanning:
            stray += max(0, (marker.start() if marker else end) - position)
            if stray > MAX_STRAY_BYTES:
                raise InputError(
                    f"{name}: more than {MAX_STRAY_BYTES} stray bytes before the JPEG's image: save it again"
                )
        if marker is None:
            return
        kind, position = marker[1][0], marker.end()
        body = b""
        if kind not in (_START, _END):
            length = int.from_bytes(data[position : position + 2])
            body = data[position + 2 : position + length]
            position += length
        yield kind, marker.start(), body
        scanning = scanning or kind == _SCAN
        if kind == _END:
            return
    raise InputError(f"{name}: the JPEG has more than {MAX_SEGMENTS} marker segments: save it again without metadata")


def check_work(scans: Scans, size: tuple[int, int], name: str) -> None:
    """Refuse a JPEG whose scans visit more than ``MAX_SCANNED_PIXELS`` pixels together."""
    pixels = size[0] * size[1]
    if scans.count * pixels > MAX_SCANNED_PIXELS:
        raise InputError(
            f"{name}: {scans.count} scans of {pixels} pixels are too much work: "
            f"at most {MAX_SCANNED_PIXELS // pixels} scans at this size"
        )


def load_whole(image: JpegImagePlugin.JpegImageFile, data: bytes, scans: Scans) -> None:
    """Do what ``image.load()`` does, but refuse a file that lacks scans, or blocks of its last scan.

    The decoder gets the file without its end marker, so it cannot make up what is missing: it waits for more. After a
    whole sequential image it is done. After a whole last scan of several it looks for the next marker, and skips every
    other byte and a restart marker. In the middle of a scan it keeps bytes back until a block is complete; between two
    restart intervals it does so once it was given the restart marker that it waits for. At most the blocks of the last
    bytes (170 and fewer, measured) may be missing unnoticed.
    """
    if scans.end is None:  # Pillow waits for the rest, and refuses
        image.load()
        return
    if not scans.complete:
        raise OSError("scans are missing")
    restart = 0xD0 + len(_RESTART.findall(data, scans.last, scans.end)) % 8
    coder, extents, _, arguments = image.tile[0]
    decoder = Image._getdecoder(image.mode, coder, arguments, image.decoderconfig)
    image.load_prepare()
    try:
        decoder.setimage(image.im, extents)
        for part in (data[: scans.end] + _AHEAD, b"\x00", bytes((0xFF, restart)), b"\x00", _END_OF_IMAGE):
            taken, error = decoder.decode(part)
            if taken < 0 and error >= 0:
                image.tile = []
                image.load()
                return
            if taken != len(part):
                break
    finally:
        decoder.cleanup()
    raise OSError("the image data ends early")
