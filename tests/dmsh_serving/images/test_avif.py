import io
import struct

import pytest
from PIL import Image, features

from dmsh_serving.errors import InputError
from dmsh_serving.images.avif import is_cropped
from dmsh_serving.images.decode import image_from_bytes

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")


def avif():
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 20)).save(file, "AVIF")
    return file.getvalue()


def with_property(data, box):
    """Put a box behind the properties of an AVIF, and make the boxes around it longer."""
    longer = bytearray(data)
    properties = longer.find(b"ipco") - 4
    end = properties + int.from_bytes(longer[properties : properties + 4])
    longer[end:end] = box
    for kind in (b"ipco", b"iprp", b"meta"):
        place = longer.find(kind) - 4
        longer[place : place + 4] = (int.from_bytes(longer[place : place + 4]) + len(box)).to_bytes(4)
    return bytes(longer)


CROP = struct.pack(">I4s8I", 40, b"clap", 32, 1, 24, 1, 0, 1, 0, 1)  # 32 x 24 pixels in the middle


def test_a_crop_is_seen_and_refused():
    assert not is_cropped(avif())
    assert not is_cropped(with_property(avif(), struct.pack(">I4sI", 12, b"free", 7) * 3))
    assert is_cropped(with_property(avif(), struct.pack(">I4s", 8, b"free") + CROP))
    cropped = with_property(avif(), CROP)
    assert is_cropped(cropped)
    assert image_from_bytes(avif(), 16).shape == (16, 16, 3)
    with pytest.raises(InputError, match=r"^x: an AVIF of which only a part is to be shown is not supported"):
        image_from_bytes(cropped, 16, name="x")


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 2**31])
def test_boxes_of_any_size_are_walked_to_their_end(size):
    data = with_property(avif(), CROP)
    place = data.find(b"ipco") - 4
    for changed in (data[:place] + size.to_bytes(4) + data[place + 4 :], data[: place + size], b""):
        assert is_cropped(changed) in (True, False)
