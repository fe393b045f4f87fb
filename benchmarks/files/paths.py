"""The path of a file search: what each step takes, by each rule of decoding, as the server itself counts."""

import dataclasses
import functools
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.serve.world import Images, make_world
from dmsh_serving.contract import DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL, SEARCH_FILE_MODEL
from dmsh_serving.images.decode import image_from_bytes
from dmsh_serving.images.framing import DECODE_RULES, Framing
from dmsh_serving.timing import in_turns

__all__ = ["FilePath", "Steps", "decode_milliseconds", "file_paths", "photograph", "steps_of"]

BATCH: Final = 32
PHOTO: Final = (3872, 2592)  # 10 megapixels
_ROUNDS: Final = 15


@dataclass(frozen=True)
class Steps:
    """Milliseconds of one request, means: what the client waits, and of that what each step takes.

    ``queues`` is the wait of all three models together; ``rest`` is Triton's handing on, its copies and the network.
    """

    waited: float
    decode: float
    encode: float
    rank: float
    queues: float

    @property
    def rest(self) -> float:
        """What no model accounts for."""
        return self.waited - self.decode - self.encode - self.rank - self.queues


@dataclass(frozen=True)
class FilePath:
    """One kind of file search by one rule of decoding."""

    network: str
    content: str
    rule: int
    steps: Steps


def file_paths(network: str, folder: Path, codes: int, seconds: float) -> list[FilePath]:
    """Measure file searches of ``network``, one client, by both rules of decoding in turns."""
    from dmsh_serving.load.measure import Measuring, measure
    from dmsh_serving.load.send import Closed
    from dmsh_serving.load.triton import TritonTarget
    from dmsh_serving.triton.repository import write_repository
    from dmsh_serving.triton.server.launcher import TritonServer

    world = make_world(network, folder, codes, 2)
    contents = _contents(world.images)
    found = []
    for rule in DECODE_RULES:
        repository = folder / f"rule-{rule}"
        write_repository(repository, dataclasses.replace(world.spec, framing=Framing(decode_rule=rule)))
        # Searches of the watch itself would be in the means of the models.
        with TritonServer(repository, log_file=folder / f"rule-{rule}.log", canary=False) as server:
            for content, (files, batch) in contents.items():
                with TritonTarget(server.url, SEARCH_FILE_MODEL, files, batch=batch, k=10, timeout=60) as target:
                    one = measure(
                        target, Closed(1), batch=batch, measuring=Measuring(1.0, seconds, 6), counts=target.counts
                    )
                models = {model.model: model for model in one.models}
                steps = Steps(
                    waited=1e3 * float(one.seconds.mean()),
                    decode=models[DECODE_MODEL].compute_ms,
                    encode=models[ENCODER_MODEL].compute_ms,
                    rank=models[RANKER_MODEL].compute_ms,
                    queues=sum(models[name].queue_ms for name in (DECODE_MODEL, ENCODER_MODEL, RANKER_MODEL)),
                )
                found.append(FilePath(network, content, rule, steps))
    return found


def decode_milliseconds(image_size: int = 224) -> dict[str, float]:
    """Return medians of decoding the 10-megapixel photograph by each rule, and as Pillow alone does, in turns."""
    data = photograph()

    def pillow() -> object:
        with Image.open(io.BytesIO(data)) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            return square.resize((image_size, image_size), Image.Resampling.BICUBIC)

    calls: dict[str, Callable[[], object]] = {
        "Pillow's full decode, crop and resize": pillow,
        **{
            f"rule {rule}": functools.partial(image_from_bytes, data, image_size, Framing(decode_rule=rule))
            for rule in DECODE_RULES
        },
    }
    seconds = in_turns(list(calls.values()), _ROUNDS, warm_seconds=0.01)
    return {name: 1e3 * statistics.median(spent) for name, spent in zip(calls, seconds, strict=True)}


def photograph(size: tuple[int, int] = PHOTO) -> bytes:
    """Return a JPEG of ``size`` as a phone makes them: scikit-learn's temple with the noise of a sensor."""
    from sklearn.datasets import load_sample_image  # type: ignore[import-untyped]

    image = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).integers(-6, 7, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(image).astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return _jpeg(Image.fromarray(pixels), 80)


def steps_of(paths: Sequence[FilePath]) -> list[list[str]]:
    """Return the rows of a table, its heads first."""
    heads = ["network", "file", "rule", "in all, ms", "decode", "encode", "rank", "queues", "Triton, copies, network"]
    return [
        heads,
        *(
            [
                path.network,
                path.content,
                str(path.rule),
                *(f"{ms:.2f}" for ms in (*dataclasses.astuple(path.steps), path.steps.rest)),
            ]
            for path in paths
        ),
    ]


def _contents(images: Images) -> dict[str, tuple[list[bytes], int]]:
    small = [_png(image) for image in images]
    return {
        "PNG of the image size": (small, 1),
        "JPEG, 10 megapixels": ([photograph()], 1),
        f"{BATCH} JPEGs, 0.3 megapixels": ([photograph((640, 427))] * BATCH, BATCH),
    }


def _png(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
