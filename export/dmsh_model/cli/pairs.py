"""``dmsh-train evaluate --pairs``: how well the codes of a checkpoint find the partner of a query."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_serving import console

if TYPE_CHECKING:
    from dmsh_serving.codes import Codes

__all__ = ["evaluate_pairs"]

_BATCH = 64


def evaluate_pairs(
    checkpoint: Path,
    queries: Path,
    database: Path,
    partners: Path | None,
    ranks: list[int],
    skip_bad: bool,
    json: Path | None,
) -> None:
    """Code both folders, print recall and mean reciprocal rank; see :mod:`dmsh_model.evaluation.pairs`."""
    import numpy as np

    import dmsh_model
    from dmsh_model.evaluation.pairs import measure_pairs, pairs_by_name, pairs_of_csv
    from dmsh_serving.images.read import iter_image_batches

    model = dmsh_model.load(checkpoint)
    found: list[tuple[Codes, list[str]]] = []
    bad: list[str] = []
    with console.progress() as display:
        for what, folder in (("queries", queries), ("database", database)):
            task = display.add_task(f"coding {what}", total=None)
            coded, named = [], []
            for batch in iter_image_batches(
                folder,
                model.config.image_size,
                _BATCH,
                model.config.framing,
                skip_bad=skip_bad,
                on_progress=lambda done, total, task=task: display.update(task, completed=done, total=total),  # type: ignore[misc]
            ):
                coded.append(model.codes(batch.images))
                named += batch.names
                bad += batch.bad
            found.append((np.concatenate(coded), named))
    (query_codes, query_names), (codes, names) = found
    pairs = pairs_of_csv(partners, query_names, names) if partners else pairs_by_name(query_names, names)
    measured = measure_pairs(query_codes, codes, pairs, ks=ranks)
    console.print_table(
        f"{checkpoint}: {measured.queries} queries of {queries}, database of {measured.database} of {database}",
        ["measure", "value"],
        [
            *([f"recall@{k}", f"{recall:.4f}"] for k, recall in measured.recall.items()),
            ["mean reciprocal rank", f"{measured.mean_reciprocal_rank:.4f}"],
        ],
    )
    alone = len(query_names) - measured.queries
    if alone:
        console.console().print(f"{alone} images of {queries} have no partner and do not count.")
    console.write_json(
        json,
        {
            "checkpoint": str(checkpoint),
            "queries": str(queries),
            "database": str(database),
            "without_partner": alone,
            "bad": bad,
            **dataclasses.asdict(measured),
        },
    )
