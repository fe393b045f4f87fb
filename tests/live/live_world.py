"""What the live tests share: a world to serve, the oracle's answers, calls at the same time."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_model
from PIL import Image

from dmsh_serving import gallery
from dmsh_serving.encoder import known_answer
from dmsh_serving.hamming.oracle import search_oracle
from dmsh_serving.triton.repository import write_repository
from dmsh_serving.triton.server.launcher import TritonServer
from dmsh_serving.triton.spec import RepositorySpec

IMAGES = tiny_model.random_images(300, seed=1)
CODES = tiny_model.codes_of(IMAGES)


@dataclass(frozen=True)
class World:
    """A folder with a model, a gallery of the first images, and a repository around them."""

    folder: Path

    @classmethod
    def make(cls, folder, count=200, *, max_batch=8, **limits):
        world = cls(folder)
        model = tiny_model.write(folder / "model.onnx")
        world.publish(count)
        spec = RepositorySpec(
            world.gallery,
            tiny_model.BITS,
            tiny_model.SIZE,
            tiny_model.FINGERPRINT,
            model=model,
            known_answer=known_answer.dump(IMAGES[:1], CODES[:1]),
            max_batch=max_batch,
            **limits,
        )
        write_repository(world.repository, spec)
        return world

    @property
    def gallery(self):
        return self.folder / "gallery"

    @property
    def repository(self):
        return self.folder / "repository"

    def publish(self, count):
        """Serve the first ``count`` images; their number can be told from the answers, as the version's size."""
        keys = [f"image-{number}" for number in range(count)]
        space = {"bits": tiny_model.BITS, "fingerprint": tiny_model.FINGERPRINT}
        return gallery.build(self.gallery, CODES[:count], None, keys, overwrite=True, **space).version

    def server(self, **options):
        return TritonServer(self.repository, log_file=self.folder / "triton.log", **{"canary": False, **options})


def expected(images, k, count=200):
    """The oracle's ids and distances (N, k) among the first ``count`` images."""
    distances, ids = search_oracle(tiny_model.codes_of(images), CODES[:count], k)
    return ids, distances


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def all_at_once(calls):
    """Run the calls at the same time; return each one's result or exception, in order."""

    def result(call):
        try:
            return call()
        except Exception as error:  # the test looks at it
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(result, calls))


def check(answer, images, k, count=200):
    ids, distances = expected(images, k, count)
    np.testing.assert_array_equal(answer.ids, ids)
    np.testing.assert_array_equal(answer.distances, distances)
