"""``dmsh-train``: train a DMSH network, and measure how well its codes retrieve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD, HashConfig, LossWeights
from dmsh_model.options import Augmentation, TrainingOptions
from dmsh_serving import console
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.data import LabelledImages

app = console.make_app("Train a Deep Multi-Scale Hashing network, and measure its retrieval.")

_TRAINING, _AUGMENTATION, _WEIGHTS = TrainingOptions(), Augmentation(), LossWeights()

DataArgument = Annotated[str, typer.Argument(help="A folder with one folder of images a class, or mnist5k.")]


@app.command()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    bits: Annotated[int, typer.Option(help="Bits of a code.")] = 64,
    backbone: Annotated[str, typer.Option(help="vgg_small, or any timm model with feature levels.")] = "vgg_small",
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 32,
    lateral_features: Annotated[int, typer.Option(help="Width of each scale.")] = 64,
    fusion_features: Annotated[int, typer.Option(help="Width of the fusion layer.")] = 128,
    pretrained: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors, .pt, .pth.")] = None,
    queries_per_class: Annotated[int, typer.Option(help="Held-out queries of each class.")] = 50,
    train_per_class: Annotated[int, typer.Option(help="At most so many training images of each class.")] = 200,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = _TRAINING.epochs,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = _TRAINING.batch_size,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = _TRAINING.learning_rate,
    weight_decay: Annotated[float, typer.Option(help="Of weight matrices.")] = _TRAINING.weight_decay,
    pairwise: Annotated[float, typer.Option(help="Weight of the pairwise loss.")] = _WEIGHTS.pairwise,
    quantisation: Annotated[float, typer.Option(help="Weight of the quantisation loss.")] = _WEIGHTS.quantisation,
    classification: Annotated[float, typer.Option(help="Weight of the class loss.")] = _WEIGHTS.classification,
    shift: Annotated[float, typer.Option(help="Random shift, pixels.")] = _AUGMENTATION.shift_pixels,
    rotation: Annotated[float, typer.Option(help="Random rotation, degrees.")] = _AUGMENTATION.rotation_degrees,
    scale: Annotated[float, typer.Option(help="Random change of size, a fraction.")] = _AUGMENTATION.scale,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random (not for digits or text).")] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the order.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = _TRAINING.threads,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Train a network on labelled images and write its checkpoint; the same command gives the same weights."""
    options = TrainingOptions(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        threads=threads,
        augmentation=Augmentation(shift, rotation, scale, flip),
    )
    weights = LossWeights(pairwise, quantisation, classification)
    # Checked before torch is imported and the images are read; num_classes is known only then.
    HashConfig(backbone, bits, image_size)
    from dmsh_model import data as images_of
    from dmsh_model import training, training_loop

    split_options = images_of.SplitOptions(queries_per_class, train_per_class, seed)
    labelled = _read(data, image_size, skip_bad)
    digits = data == images_of.MNIST_5K
    config = HashConfig(
        backbone,
        bits,
        image_size,
        lateral_features=lateral_features,
        fusion_features=fusion_features,
        mean=images_of.MNIST_5K_MEAN if digits else IMAGENET_MEAN,
        std=images_of.MNIST_5K_STD if digits else IMAGENET_STD,
        num_classes=len(labelled.class_names),
        loss=weights,
    )
    with console.progress() as display:
        task = display.add_task("training", total=epochs)

        def show(epoch: training_loop.Epoch) -> None:
            display.update(task, completed=epoch.number, description=f"training, loss {epoch.loss:.4f}")

        trained = training.fit(
            config,
            labelled,
            split_options,
            options,
            out,
            pretrained=pretrained,
            resume=resume,
            overwrite=overwrite,
            on_epoch=show,
        )
    sizes = trained.record["split"]
    console.print_table(
        f"{out}: {backbone}, {bits} bits, trained on {data}",
        ["measure", "value"],
        [
            ["training images", str(sizes["train"])],
            ["queries", str(sizes["queries"])],
            ["database", str(sizes["database"])],
            ["unreadable images left out", str(len(labelled.bad))],
            ["mAP@all", f"{trained.map_all:.4f}"],
        ],
    )
    console.write_json(json, {"out": str(out), "bad": labelled.bad, **trained.record})


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a state dict beside its config.json.")],
    data: DataArgument,
    topk: Annotated[
        list[int] | None, typer.Option(help="Ranks that count; may be repeated.  [default: 1, 10, 100]")
    ] = None,
    queries_per_class: Annotated[int | None, typer.Option(help="[default: as trained]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split.  [default: as trained]")] = None,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Print mAP@all, mAP@k and precision@k of held-out queries, in the order (distance, database row)."""
    ranks = topk or [1, 10, 100]
    if min(ranks) < 1:
        raise InputError(f"topk = {min(ranks)} must be at least 1")
    import dmsh_model
    from dmsh_model import checkpoint as checkpoints
    from dmsh_model import data as images_of
    from dmsh_model.evaluation import mean_average_precision, mean_precision

    record = checkpoints.read_header(checkpoint).get("training", {}).get("split") or {}
    if not isinstance(record, dict):
        raise InputError(f"{checkpoint}: the config's 'training.split' is no object")
    model = dmsh_model.load(checkpoint)
    labelled = _read(data, model.config.image_size, skip_bad)
    trained_as = images_of.SplitOptions(
        **{name: record[name] for name in ("queries_per_class", "train_per_class", "seed") if name in record}
    )
    split = images_of.split_images(
        labelled,
        images_of.SplitOptions(
            trained_as.queries_per_class if queries_per_class is None else queries_per_class,
            trained_as.train_per_class,
            trained_as.seed if seed is None else seed,
        ),
    )
    with console.progress() as display:
        parts = display.track((split.query, split.database), description="coding images")
        queries, database = (model.codes(labelled.images[rows]) for rows in parts)
    arrays = (queries, database, labelled.labels[split.query], labelled.labels[split.database])
    map_all = mean_average_precision(*arrays)
    at = [(k, mean_average_precision(*arrays, topk=k), mean_precision(*arrays, topk=k)) for k in ranks]
    console.print_table(
        f"{checkpoint} on {data}: {len(split.query)} queries, database of {len(split.database)}",
        ["ranks", "mAP", "precision"],
        [["all", f"{map_all:.4f}", ""], *([str(k), f"{ap:.4f}", f"{precision:.4f}"] for k, ap, precision in at)],
    )
    as_trained = split.sha256 == record.get("sha256")
    if not as_trained:
        console.console().print("This is not the split of the training: some queries may have been trained on.")
    console.write_json(
        json,
        {
            "checkpoint": str(checkpoint),
            "data": data,
            "split_as_trained": as_trained,
            "bad": labelled.bad,
            "map_all": map_all,
            "at": [{"k": k, "map": ap, "precision": precision} for k, ap, precision in at],
        },
    )


def _read(data: str, image_size: int, skip_bad: bool) -> "LabelledImages":
    from dmsh_model.data import load_labelled

    with console.progress() as display:
        task = display.add_task("reading images", total=None)
        return load_labelled(
            data,
            image_size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )


def main() -> None:
    """Run the command line."""
    console.run(app)
