"""What integers cost in retrieval: mAP@all of the float network, of `quantize` alone, and after fine-tuning.

    python -m benchmarks.accuracy --data mnist5k --data build/clipart --seeds 3 --json build/accuracy.json

For each seed: split, train in float, quantise (the calibration sees training images alone), fine-tune in integers,
and measure all three on the same held-out queries. The float checkpoints, by far the longest to make, are kept below
``--work`` and taken from there the next time, when they were made from the same data with the same options.
"""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dmsh_model.training.options import FINE_TUNING, TrainingOptions
from dmsh_serving import console
from dmsh_serving.errors import CheckError, InputError

if TYPE_CHECKING:
    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.network import DMSH

QUANTISED_GOAL: Final = 0.5  # points of mAP that `quantize` alone may lose, mean over the seeds
FINE_TUNED_GOAL: Final = 0.1  # likewise after fine-tuning
_BITS: Final = 64

app = console.make_app("Measure what integers cost in retrieval, over several seeds.")


@dataclass(frozen=True)
class Row:
    """One data set and seed: mAP@all of each network, and the share of the queries' bits equal to the float ones."""

    data: str
    seed: int
    float_map: float
    quantised_map: float
    fine_tuned_map: float
    quantised_equal_bits: float
    fine_tuned_equal_bits: float

    @property
    def lost(self) -> tuple[float, float]:
        """Points of mAP lost by `quantize` alone and after fine-tuning; negative if gained."""
        return 100 * (self.float_map - self.quantised_map), 100 * (self.float_map - self.fine_tuned_map)


@app.command()
def accuracy(
    data: Annotated[list[str], typer.Option(help="mnist5k, or a folder of class folders; may be repeated.")],
    seeds: Annotated[int, typer.Option(help="So many, from 0: of the split, the weights and the order.")] = 3,
    epochs: Annotated[int, typer.Option(help="Of the float training.")] = 30,
    tuning_epochs: Annotated[int, typer.Option(help="Of the fine-tuning.")] = FINE_TUNING.epochs,
    queries_per_class: Annotated[
        int | None, typer.Option(help="Held-out queries of each class.  [default: 50 of mnist5k, else 10]")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 32,
    work: Annotated[Path, typer.Option(help="Where the checkpoints are kept.")] = Path("build/accuracy"),
    json: console.JsonOption = None,
) -> None:
    """Print mAP for every data set and seed, with mean and spread; exit 1 if a loss is above its goal."""
    if seeds < 1:
        raise InputError(f"seeds = {seeds} must be at least 1")
    from dmsh_model.data.load import MNIST_5K, load_labelled
    from dmsh_model.data.split import SplitOptions

    rows = []
    for source in data:
        labelled = load_labelled(source, image_size)
        queries = queries_per_class or (50 if source == MNIST_5K else 10)
        for seed in range(seeds):
            folder = work / labelled.source / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            split = SplitOptions(queries_per_class=queries, seed=seed)
            with console.progress() as display:
                task = display.add_task(f"{labelled.source}, seed {seed}", total=None)
                rows.append(
                    measured(
                        labelled,
                        split,
                        TrainingOptions(epochs=epochs, seed=seed),
                        dataclasses.replace(FINE_TUNING, epochs=tuning_epochs, seed=seed),
                        folder,
                        lambda name, done, of: display.update(task, description=name, completed=done, total=of),  # noqa: B023
                    )
                )
            last = rows[-1]
            console.console().print(
                f"{last.data}, seed {seed}: float {last.float_map:.4f}, lost {last.lost[0]:.2f} points by quantize "
                f"alone, {last.lost[1]:.2f} after fine-tuning"
            )
    report(rows, json)


def measured(
    data: "LabelledImages",
    split_options: "SplitOptions",
    options: TrainingOptions,
    tuning: TrainingOptions,
    folder: Path,
    on_stage: Callable[[str, int, int], None],
) -> Row:
    """Train, quantise and fine-tune in ``folder``; measure each on the split's queries against its database."""
    from dmsh_export.quantise.run import quantise
    from dmsh_model import checkpoint
    from dmsh_model.data.split import split_images
    from dmsh_model.finetune import run as integer_training
    from dmsh_model.integer import checkpoint as integer_checkpoint
    from dmsh_serving.images.read import ImageSet

    split = split_images(data, split_options)
    teacher = _float_network(data, split_options, options, folder / "float", on_stage)
    on_stage("quantising", 0, 1)
    seen = ImageSet(data.images[split.train], [data.names[row] for row in split.train], [])
    quantised = quantise(teacher, [seen])
    integer_checkpoint.save(
        quantised.model,
        folder / "integer",
        parent=teacher.fingerprint,
        training=checkpoint.read_header(folder / "float")["training"],
        quantisation=quantised.record(),
        overwrite=True,
    )
    tuned = integer_training.fine_tune(
        integer_training.read_start(folder / "integer", folder / "float"),
        data,
        split_options,
        tuning,
        folder / "tuned",
        overwrite=True,
        on_epoch=lambda epoch: on_stage("fine-tuning", epoch.number, epoch.of),
    )
    return Row(
        data.source,
        options.seed,
        tuned.teacher.map_all,
        tuned.before.map_all,
        tuned.after.map_all,
        tuned.before.equal_bits_share,
        tuned.after.equal_bits_share,
    )


def _float_network(
    data: "LabelledImages",
    split_options: "SplitOptions",
    options: TrainingOptions,
    folder: Path,
    on_stage: Callable[[str, int, int], None],
) -> "DMSH":
    from dmsh_model import checkpoint
    from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD, HashConfig
    from dmsh_model.data.load import MNIST_5K, MNIST_5K_MEAN, MNIST_5K_STD
    from dmsh_model.data.split import split_images
    from dmsh_model.training import run as training

    split = split_images(data, split_options)
    if folder.exists():
        record = checkpoint.read_header(folder).get("training", {})
        made_as = (record.get("options"), record.get("data_sha256"), record.get("split", {}).get("sha256"))
        if made_as == (dataclasses.asdict(options), data.sha256, split.sha256):
            return checkpoint.load(folder)
    digits = data.source == MNIST_5K
    config = HashConfig(
        "vgg_small",
        _BITS,
        data.images.shape[1],
        lateral_features=64,
        fusion_features=128,
        mean=MNIST_5K_MEAN if digits else IMAGENET_MEAN,
        std=MNIST_5K_STD if digits else IMAGENET_STD,
        num_classes=len(data.class_names),
    )
    return training.fit(
        config,
        data,
        split_options,
        options,
        folder,
        overwrite=True,
        on_epoch=lambda epoch: on_stage("training in float", epoch.number, epoch.of),
    ).model


def report(rows: list[Row], json: Path | None) -> None:
    """Print the table, write the JSON, and compare the means with the goals.

    Raises:
        CheckError: a mean loss is above its goal; says which.
    """
    cells: list[list[str]] = []
    missed: list[str] = []
    means: dict[str, Any] = {}
    for source in dict.fromkeys(row.data for row in rows):
        own = [row for row in rows if row.data == source]
        cells += [
            [
                source,
                str(row.seed),
                *_map_cells(row),
                f"{row.quantised_equal_bits:.2%}",
                f"{row.fine_tuned_equal_bits:.2%}",
            ]
            for row in own
        ]
        quantised, tuned = ([row.lost[which] for row in own] for which in (0, 1))
        means[source] = {
            "quantised_points_lost": statistics.fmean(quantised),
            "fine_tuned_points_lost": statistics.fmean(tuned),
        }
        cells.append(
            [
                source,
                "mean ± spread",
                _spread([100 * row.float_map for row in own]),
                _spread(quantised),
                _spread(tuned),
                "",
                "",
            ]
        )
        for what, found, goal in (
            ("quantize alone", means[source]["quantised_points_lost"], QUANTISED_GOAL),
            ("fine-tuning", means[source]["fine_tuned_points_lost"], FINE_TUNED_GOAL),
        ):
            if found > goal:
                missed.append(f"{source}: {found:.2f} points lost after {what}, {goal} are allowed")
    console.print_table(
        "mAP@all of held-out queries, float and integer; points lost (negative: gained)",
        ["data", "seed", "float mAP", "lost: quantize", "lost: fine-tuned", "equal bits: quantize", "fine-tuned"],
        cells,
    )
    plain = [{**dataclasses.asdict(row), "points_lost": list(row.lost)} for row in rows]
    console.write_json(json, {"rows": plain, "means": means, "missed": missed})
    if missed:
        raise CheckError("; ".join(missed))


def _map_cells(row: Row) -> list[str]:
    return [f"{100 * row.float_map:.2f}", f"{row.lost[0]:.2f}", f"{row.lost[1]:.2f}"]


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    console.run(app)
