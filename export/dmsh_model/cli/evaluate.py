"""``dmsh-train evaluate``: how well the codes of a checkpoint retrieve."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsh_model.cli.data_option import CacheOption, OptionalDataArgument, read_labelled, refuse_split_options
from dmsh_model.cli.pairs import evaluate_pairs
from dmsh_serving import console
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.evaluation.report import Range, Retrieval


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint folder, or a .pt/.pth state dict beside its config.json.")
    ],
    data: OptionalDataArgument = None,
    pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Instead of DATA, a folder of queries and one of database images: how well a query finds the image of "
            "the same name.",
            metavar="QUERIES DATABASE",
        ),
    ] = None,
    partners: Annotated[
        Path | None, typer.Option(help="With --pairs, a CSV file of pairs (query,database) instead of equal names.")
    ] = None,
    topk: Annotated[
        list[int] | None, typer.Option(help="Number of ranks that count; may be repeated.  [default: 1, 10, 100]")
    ] = None,
    queries_per_class: Annotated[
        int | None, typer.Option(help="Held-out queries per class.  [default: as trained]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for the split.  [default: as trained]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the precision-recall curve into this .svg file.")] = None,
    cache: CacheOption = None,
    skip_bad: console.SkipBadOption = False,
    json: console.JsonOption = None,
) -> None:
    """Measure how well held-out queries find their class. Prints mAP, precision and recall."""
    ranks = topk or [1, 10, 100]
    if min(ranks) < 1:
        raise InputError(f"topk = {min(ranks)} must be at least 1")
    if (pairs is None) == (data is None):
        raise InputError("give either DATA, labelled images, or --pairs QUERIES DATABASE")
    if pairs:
        if plot or queries_per_class is not None or seed is not None or cache:
            raise InputError("--plot, --queries-per-class, --seed and --cache are for labelled images: leave them out")
        evaluate_pairs(checkpoint, *pairs, partners, ranks, skip_bad, json)
        return
    if partners:
        raise InputError("--partners names the pairs of --pairs QUERIES DATABASE: give it too")
    assert data is not None
    import dmsh_model
    from dmsh_model import checkpoint as checkpoints
    from dmsh_model.data import load as images_of
    from dmsh_model.evaluation import plot as evaluation_plot
    from dmsh_model.evaluation.coding import chunks_of, codes_of_rows
    from dmsh_model.evaluation.report import measure_retrieval
    from dmsh_model.finetune.split import fine_tunings, seen_queries

    if plot:
        evaluation_plot.checked_plot_path(plot)
    header = checkpoints.read_header(checkpoint)
    training = header.get("training", {})
    record = training.get("split") or {}
    if not isinstance(record, dict):
        raise InputError(f"{checkpoint}: the config's 'training.split' is no object")
    model = dmsh_model.load(checkpoint)
    labelled = read_labelled(data, model.config.image_size, model.config.framing, skip_bad, cache)
    refuse_split_options(labelled, {"--queries-per-class": queries_per_class, "--seed": seed})
    split = images_of.split_images(labelled, _split_options(record, queries_per_class, seed))
    with console.progress() as display:
        total = sum(chunks_of(rows) for rows in (split.query, split.database))
        task = display.add_task("coding images", total=total)
        queries, database = (
            codes_of_rows(model.codes, labelled.images, rows, on_chunk=lambda: display.advance(task))
            for rows in (split.query, split.database)
        )
    retrieval = measure_retrieval(
        queries, database, labelled.labels[split.query], labelled.labels[split.database], ks=ranks
    )
    _print(retrieval, f"{checkpoint} on {data}")
    data_as_trained = labelled.sha256 == training.get("data_sha256")
    split_as_trained = split.sha256 == record.get("sha256")
    tunings = fine_tunings(header.get("quantisation", {}))
    seen = seen_queries([training, *tunings], labelled, labelled.sha256, split)
    learnt = "some queries may have been" if seen is None else f"{seen:,} of the {len(split.query):,} queries were"
    if not split_as_trained:
        console.console().print(f"This is not the split of the training: {learnt} trained on.")
    elif tunings and seen != 0:
        console.console().print(f"A fine-tuning had another split: {learnt} trained on.")
    elif not data_as_trained:
        console.console().print("These are not the images of the training, or not decoded as they were.")
    if plot:
        evaluation_plot.write_curve(plot, retrieval, f"{labelled.source}, {model.config.bits} bits")
    console.write_json(
        json,
        {
            "checkpoint": str(checkpoint),
            "data": data,
            "data_as_trained": data_as_trained,
            "split_as_trained": split_as_trained,
            "split_sha256": split.sha256,
            "queries_trained_on": seen,
            "bad": labelled.bad,
            **dataclasses.asdict(retrieval),
        },
    )


def _split_options(record: dict[str, Any], queries_per_class: int | None, seed: int | None) -> "SplitOptions":
    """Return the options of the training's split, but for those that are given here."""
    from dmsh_model.data.split import SplitOptions

    known = {field.name for field in dataclasses.fields(SplitOptions)}
    asked = {"queries_per_class": queries_per_class, "seed": seed}
    return SplitOptions(
        **{
            **{name: value for name, value in record.items() if name in known},
            **{name: value for name, value in asked.items() if value is not None},
        }
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
