"""A region of an image file, as a file of its own that the encoder can be given."""

import io

from dmsh_serving.errors import InputError
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.images.known_answer import check_decoder
from dmsh_serving.images.limits import MAX_FILE_BYTES

__all__ = ["cut_out"]


def cut_out(data: bytes, box: tuple[float, float, float, float], decoders: Decoders) -> bytes:
    """Return the region ``box`` (left, top, width and height, as shares of the upright image) as PNG, lossless.

    Its edges are rounded to whole pixels; it is at least one pixel wide and high.

    Raises:
        CheckError: Pillow makes other pixels than it should.
        InputError: ``data`` is no image that ``decoders`` decode, or the region is larger than any file may be.
    """
    check_decoder()
    image = decoders.rgb(data)
    left, top, width, height = box
    first = min(round(left * image.width), image.width - 1), min(round(top * image.height), image.height - 1)
    end = (
        min(max(round((left + width) * image.width), first[0] + 1), image.width),
        min(max(round((top + height) * image.height), first[1] + 1), image.height),
    )
    file = io.BytesIO()
    image.crop((*first, *end)).save(file, "PNG", compress_level=1)
    cut = file.getvalue()
    if len(cut) > MAX_FILE_BYTES:
        raise InputError(
            f"the region has {len(cut):,} bytes as a PNG file, at most {MAX_FILE_BYTES:,} are taken: draw a smaller one"
        )
    return cut
