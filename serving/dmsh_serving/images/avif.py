"""What Pillow does not look at in an AVIF: a crop (ISO/IEC 14496-12, the boxes; 23008-12, the property ``clap``)."""

from collections.abc import Iterator

__all__ = ["is_cropped"]


def is_cropped(avif: bytes) -> bool:
    """Say whether a picture of the file is to be shown in part: its "clean aperture"."""
    path = [b"meta", b"iprp", b"ipco"]
    start, end = 0, len(avif)
    for wanted in path:
        found = [place for kind, *place in _boxes(avif, start, end) if kind == wanted]
        if not found:
            return False
        start, end = found[0]
        start += 4 * (wanted == b"meta")  # version and flags
    return any(kind == b"clap" for kind, *_ in _boxes(avif, start, end))


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of the content of each box between two places."""
    while start + 8 <= end:
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        stop = start + size if size else end
        if stop < start + head or stop > end:
            return
        yield kind, start + head, stop
        start = stop
