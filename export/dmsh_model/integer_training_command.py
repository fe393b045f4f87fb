"""``dmsh-train fit --integer``: what the command does once its options are read."""

from pathlib import Path
from typing import Any

from dmsh_model import integer_training, training_loop
from dmsh_model.config import LossWeights
from dmsh_model.data import LabelledImages, SplitOptions
from dmsh_model.options import TrainingOptions
from dmsh_serving import console
from dmsh_serving.errors import InputError


def split_as_taught(
    record: dict[str, Any], queries_per_class: int | None, train_per_class: int | None, seed: int
) -> SplitOptions:
    """Return the split that the teacher was trained on, so that its held-out queries stay held out.

    Args:
        record: what the teacher's checkpoint keeps of its training; may lack the split.
        queries_per_class: in place of the record's.
        train_per_class: in place of the record's.
        seed: where the record has none.

    Raises:
        InputError: the record is no record.
    """
    taught = record.get("split") or {}
    if not isinstance(taught, dict):
        raise InputError("the float checkpoint's 'training.split' is no object")
    default = SplitOptions()
    return SplitOptions(
        taught.get("queries_per_class", default.queries_per_class) if queries_per_class is None else queries_per_class,
        taught.get("train_per_class", default.train_per_class) if train_per_class is None else train_per_class,
        taught.get("seed", seed),
    )


def fine_tune(
    start: integer_training.Start,
    labelled: LabelledImages,
    split_options: SplitOptions,
    options: TrainingOptions,
    weights: LossWeights,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    json: Path | None,
) -> None:
    """Fine-tune with a progress bar, and print what it gained."""
    with console.progress() as display:
        task = display.add_task("fine-tuning in integers", total=options.epochs)

        def show(epoch: training_loop.Epoch) -> None:
            description = f"fine-tuning in integers, loss {epoch.loss:.5f}"
            display.update(task, completed=epoch.number, description=description)

        tuned = integer_training.fine_tune(
            start,
            labelled,
            split_options,
            options,
            out,
            weights=weights,
            resume=resume,
            overwrite=overwrite,
            on_epoch=show,
        )
    sizes = tuned.record["split"]
    console.print_table(
        f"{out}: {sizes['queries']} held-out queries of {labelled.source}, database of {sizes['database']}",
        ["network", "mAP@all", "bits equal to the float network's"],
        [
            ["float", f"{tuned.teacher.map_all:.4f}", "100%"],
            ["integer, before", f"{tuned.before.map_all:.4f}", f"{tuned.before.equal_bits_share:.3%}"],
            ["integer, fine-tuned", f"{tuned.after.map_all:.4f}", f"{tuned.after.equal_bits_share:.3%}"],
        ],
    )
    console.console().print(f"code space {tuned.model.fingerprint[:12]}: encode the gallery anew")
    console.write_json(
        json, {"out": str(out), "fingerprint": tuned.model.fingerprint, "bad": labelled.bad, **tuned.record}
    )
