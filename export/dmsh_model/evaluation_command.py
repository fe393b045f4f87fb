"""``dmsh-train evaluate``: how well the codes of a checkpoint retrieve."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_model.data_option import DataArgument, read_labelled
from dmsh_serving import console
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.evaluation_report import Range, Retrieval


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a state dict beside its config.json.")],
    data: DataArgument,
    topk: Annotated[
        list[int] | None, typer.Option(help="Ranks that count; may be repeated.  [default: 1, 10, 100]")
    ] = None,
    queries_per_class: Annotated[int | None, typer.Option(help="[default: as trained]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split.  [default: as trained]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the precision-recall curve, to this .svg file.")] = None,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Print mAP, precision, recall and their curve of held-out queries, in the order (distance, database row)."""
    ranks = topk or [1, 10, 100]
    if min(ranks) < 1:
        raise InputError(f"topk = {min(ranks)} must be at least 1")
    import dmsh_model
    from dmsh_model import checkpoint as checkpoints
    from dmsh_model import data as images_of
    from dmsh_model import evaluation_plot
    from dmsh_model.evaluation_report import measure_retrieval

    if plot:
        evaluation_plot.checked_plot_path(plot)
    record = checkpoints.read_header(checkpoint).get("training", {}).get("split") or {}
    if not isinstance(record, dict):
        raise InputError(f"{checkpoint}: the config's 'training.split' is no object")
    model = dmsh_model.load(checkpoint)
    labelled = read_labelled(data, model.config.image_size, skip_bad)
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
    retrieval = measure_retrieval(
        queries, database, labelled.labels[split.query], labelled.labels[split.database], ks=ranks
    )
    _print(retrieval, f"{checkpoint} on {data}")
    as_trained = split.sha256 == record.get("sha256")
    if not as_trained:
        console.console().print("This is not the split of the training: some queries may have been trained on.")
    if plot:
        evaluation_plot.write_curve(plot, retrieval, f"{labelled.source}, {model.config.bits} bits")
    console.write_json(
        json,
        {
            "checkpoint": str(checkpoint),
            "data": data,
            "split_as_trained": as_trained,
            "split_sha256": split.sha256,
            "bad": labelled.bad,
            **dataclasses.asdict(retrieval),
        },
    )


def _print(retrieval: "Retrieval", what: str) -> None:
    within = retrieval.within_radius
    console.print_table(
        f"{what}: {retrieval.queries} queries, database of {retrieval.database}",
        ["ranks", "mAP over found", "mAP over possible", "under ties", "precision", "recall"],
        [
            ["all", *[f"{retrieval.map_all:.4f}"] * 2, _range(retrieval.map_all_under_ties), "", ""],
            *(
                [
                    str(at.k),
                    f"{at.map_over_found:.4f}",
                    f"{at.map_over_possible:.4f}",
                    _range(at.map_over_possible_under_ties),
                    f"{at.precision:.4f}",
                    f"{at.recall:.4f}",
                ]
                for at in retrieval.at
            ),
            [f"within radius {within.radius}", "", "", "", f"{within.precision:.4f}", ""],
        ],
    )
    say = console.console().print
    say("mAP@k is the sum of precision at relevant ranks, over those found among k or over min(k, all relevant).")
    say("Under ties: the range of mAP (over possible) over all orders of images at equal distance.")
    if within.empty_queries:
        say(f"{within.empty_queries} queries have nothing within radius {within.radius}; each counts as precision 0.")
    if retrieval.queries_without_relevant:
        say(f"{retrieval.queries_without_relevant} queries have no relevant image in the database; each counts as 0.")


def _range(under_ties: "Range") -> str:
    return f"{under_ties.least:.4f} to {under_ties.most:.4f}"
