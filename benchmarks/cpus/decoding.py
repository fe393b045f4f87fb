"""Files -> images on other machines: every kind of JPEG, by each rule, must give the bytes that it gives here."""

import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
from PIL import Image

from benchmarks.cpus.machines import Machine
from dmsh_serving.errors import CheckError
from dmsh_serving.images.decode import image_from_bytes
from dmsh_serving.images.framing import DECODE_RULES, Framing

__all__ = ["Decoded", "decoded", "sample_files"]

IMAGE_SIZE: Final = 32
# Short sides for which the second rule scales by 1, 1/2, 1/4 and 1/8, none of them a multiple of a block.
_SIDES: Final = (97, 145, 283, 531)
_SUBSAMPLINGS: Final = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True)
class Decoded:
    """What decoding the sample gave on one machine: the files, and the names of those whose bytes differ."""

    machine: str
    title: str
    emulator: str
    pillow: str
    files: int
    different: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every image is the same."""
        return not self.different

    def failure(self) -> str:
        """Return one line: what differs."""
        return f"{self.title}: {len(self.different)} of {self.files} images differ: {', '.join(self.different[:5])}"


def decoded(machine: Machine, folder: Path) -> Decoded:
    """Decode the sample on ``machine`` and here, by each rule; ``folder`` takes the files of this run.

    Raises:
        CheckError: the machine gives no result, or has another Pillow, for which nothing is promised.
    """
    files = dict(sample_files())
    task = folder / f"{machine.name}-decode.json"
    place = folder / f"{machine.name}-files"
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    task.write_text(json.dumps({"decode": str(place), "image_size": IMAGE_SIZE, "rules": DECODE_RULES}))
    found = machine.run(task, {})
    if found["pillow"] != PIL.__version__:
        raise CheckError(f"{machine.title} has Pillow {found['pillow']}, here is {PIL.__version__}")
    return compared(machine, files, found)


def compared(machine: Machine, files: dict[str, bytes], found: dict[str, Any]) -> Decoded:
    """Hold the digests that a machine ``found`` against those of the images here."""
    expected = {
        f"{name}, rule {rule}": hashlib.sha256(
            image_from_bytes(data, IMAGE_SIZE, Framing(decode_rule=rule)).tobytes()
        ).hexdigest()
        for rule in DECODE_RULES
        for name, data in files.items()
    }
    different = tuple(name for name, digest in expected.items() if found["images"].get(name) != digest)
    return Decoded(machine.name, machine.title, machine.emulator, found["pillow"], len(expected), different)


def sample_files() -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of JPEGs of every common kind and size, and of a PNG and a WebP beside them."""
    for side, (subsampling, number), progressive in itertools.product(_SIDES, _SUBSAMPLINGS.items(), (False, True)):
        kind = "progressive" if progressive else "baseline"
        name = f"{side} {subsampling.replace(':', '')} {kind}.jpg"
        yield name, _file(_picture(side), "JPEG", subsampling=number, progressive=progressive, quality=88)
    for side in _SIDES:
        yield f"{side} grey.jpg", _file(_picture(side).convert("L"), "JPEG", quality=88)
        yield f"{side} cmyk.jpg", _file(_picture(side).convert("CMYK"), "JPEG", quality=88)
    exif = Image.Exif()
    for orientation in range(2, 9):
        exif[_ORIENTATION] = orientation
        yield f"turned {orientation}.jpg", _file(_picture(283), "JPEG", quality=88, exif=exif.tobytes())
    yield "plain.png", _file(_picture(283), "PNG")
    yield "lossy.webp", _file(_picture(283), "WEBP", quality=80)


def _picture(side: int) -> Image.Image:
    """Return an image of smooth and of sharp parts, ``side`` high and a third wider."""
    random = np.random.default_rng(side)
    size = (side * 4 // 3, side)
    coarse, fine = (
        Image.fromarray(random.integers(0, 256, (rows, rows, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for rows in (5, side // 2)
    )
    return Image.blend(coarse, fine, 0.3)


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
