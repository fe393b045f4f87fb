"""A page with each query's picture and those of its nearest images: one file, with all pictures in it."""

import base64
import io
from pathlib import Path
from typing import Any, Final

from dmsh_serving.errors import InputError
from dmsh_serving.files import read_regular, write_atomically
from dmsh_serving.images.decode import MAX_FILE_BYTES, rgb_from_bytes

__all__ = ["write_sheet"]

_SIDE: Final = 144  # of a picture, in pixels


def write_sheet(out: Path, results: list[dict[str, Any]], images: Path) -> None:
    """Write the page ``out``.

    Args:
        out: the .html file.
        results: of each query ``file`` and ``nearest``, as ``dmsh-serve query --json`` has them.
        images: the folder below which the gallery's keys are paths; a picture that is not there is left empty.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(Path(__file__).with_name("sheet.html").read_text())
    rows = [
        {
            "file": result["file"],
            "picture": _picture(Path(result["file"])),
            "nearest": [{**image, "picture": _picture_of_key(images, image["key"])} for image in result["nearest"]],
        }
        for result in results
    ]
    write_atomically(out, template.render(rows=rows, side=_SIDE).encode())


def _picture_of_key(images: Path, key: str) -> str | None:
    path = images / key
    # A key is any string: one that leads out of the folder, or can be no path at all, is none of its images.
    try:
        is_inside = bool(key) and path.resolve().is_relative_to(images.resolve())
    except (ValueError, OSError):
        return None
    return _picture(path) if is_inside else None


def _picture(path: Path) -> str | None:
    """Return the image, made small, as a data URL; None if it cannot be read."""
    try:
        picture = rgb_from_bytes(read_regular(path, MAX_FILE_BYTES), name=str(path), at_least=_SIDE)
    except (InputError, OSError):
        return None
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
