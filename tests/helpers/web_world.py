"""A gallery to look at: 10,000 tiny images, some near each other, some with hostile keys, and a Triton over them."""

import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tiny_model
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.spec import RepositorySpec
from dmsh_serving.web.server import WebServer
from dmsh_serving.web.settings import WebSettings

COUNT, DIFFERENT = 10_000, 500
FAMILY = 5  # each of the different images, and so many that are nearly the same
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "../../etc/passwd",
    "..",
    "\N{GRINNING FACE}\N{FAMILY}.png",
    "\u202eגנפ.png",
    "a\"b'c&amp;.png",
    "/etc/passwd",
    "%2e%2e%2fx.png",
)
HOSTILE_FROM = COUNT - len(HOSTILE)


def images():
    """(COUNT, 16, 16, 3) uint8: families of FAMILY, every one a base with a little noise; bases repeat."""
    bases = np.random.default_rng(5).integers(0, 256, (DIFFERENT // FAMILY, 16, 16, 3))
    noise = np.random.default_rng(6).integers(-9, 10, (DIFFERENT, 16, 16, 3))
    return np.clip(np.repeat(bases, FAMILY, axis=0) + noise, 0, 254).astype(np.uint8)


IMAGES = images()


def key(number):
    return HOSTILE[number - HOSTILE_FROM] if number >= HOSTILE_FROM else f"{number % 7}/image-{number:05d}.png"


KEYS = [key(number) for number in range(COUNT)]
CODES = np.resize(tiny_model.codes_of(IMAGES), (COUNT, 8))
# Beyond the different images, codes of their own, so that distances differ.
CODES[DIFFERENT:] ^= np.random.default_rng(7).integers(0, 256, (COUNT - DIFFERENT, 8), dtype=np.uint8) & 0x11


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@dataclass
class WebWorld:
    """Everything in one folder."""

    folder: Path
    server: TritonServer | None = field(default=None)

    @classmethod
    def make(cls, folder):
        world = cls(folder)
        for number in range(7):
            (world.images / str(number)).mkdir(parents=True)
        for number, name in enumerate(KEYS):
            file = world.images / name
            if (number >= HOSTILE_FROM and "/" in name.removesuffix(".png")) or name == "..":
                continue  # these name no file
            first = world.images / KEYS[number % DIFFERENT]
            if number < DIFFERENT:
                file.write_bytes(png(IMAGES[number]))
            else:
                file.hardlink_to(first)
        space = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
        gallery.build(world.gallery, CODES, None, KEYS, **space)
        lines = [
            f'"{name.replace(chr(34), chr(34) * 2)}",{n % 7},{"even" if n % 2 == 0 else "odd"},{n}'
            for n, name in enumerate(KEYS)
        ]
        world.metadata.write_text("key,shelf,parity,serial\n" + "\n".join(lines) + "\n")
        model = tiny_model.write(folder / "model.onnx")
        spec = RepositorySpec(world.gallery, tiny_model.BITS, tiny_model.SIZE, tiny_model.FINGERPRINT, model=model)
        write_repository(world.repository, spec)
        return world

    @property
    def images(self):
        return self.folder / "images"

    @property
    def gallery(self):
        return self.folder / "gallery"

    @property
    def metadata(self):
        return self.folder / "metadata.csv"

    @property
    def repository(self):
        return self.folder / "repository"

    def triton(self):
        return TritonServer(self.repository, log_file=self.folder / "triton.log")

    def page(self, url, **options):
        """A page over the Triton at ``url``; with the gallery's folder unless told otherwise."""
        given = {"gallery": self.gallery, "metadata": self.metadata, **options}
        if given["gallery"] is None:
            given["metadata"] = None
        return WebServer(WebSettings(triton=url, images=self.images, cache=self.folder / "cache", port=0, **given))


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


def ask(page, path, body=None, *, method=None, headers=None):
    """Ask a page over HTTP: a dict as JSON, bytes as they are."""
    headers = dict(headers or {})
    if isinstance(body, dict | list):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    elif body is not None:
        headers.setdefault("Content-Type", "application/octet-stream")
    request = urllib.request.Request(page.url.rstrip("/") + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, dict(error.headers), error.read())


def in_order(like, unlike=(), allowed=None):
    """The oracle: [(score, id)] of every image, in the order that the docs define."""
    bits = np.unpackbits(CODES, axis=1).astype(np.int64)

    def distance(code):
        return np.abs(bits - np.unpackbits(np.frombuffer(bytes(code), np.uint8)).astype(np.int64)).sum(axis=1)

    scores = sum(map(distance, like), start=np.zeros(COUNT, np.int64)) - sum(map(distance, unlike), start=0)
    return sorted((int(scores[each]), each) for each in (range(COUNT) if allowed is None else allowed))
