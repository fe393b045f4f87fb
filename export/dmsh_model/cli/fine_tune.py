"""``dmsh-train fit --integer``: what the command does once its options are read."""

from pathlib import Path

from dmsh_model.config import LossWeights
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.split import SplitOptions
from dmsh_model.finetune import run as integer_training
from dmsh_model.training import loop as training_loop
from dmsh_model.training.options import TrainingOptions
from dmsh_serving import console


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
    sizes, seen = tuned.record["split"], tuned.record["queries_trained_on"]
    held_out = "held-out queries" if seen == 0 else "queries"
    console.print_table(
        f"{out}: {sizes['queries']} {held_out} of {labelled.source}, database of {sizes['database']}",
        ["network", "mAP@all", "bits equal to the float network's"],
        [
            ["float", f"{tuned.teacher.map_all:.4f}", "100%"],
            ["integer, before", f"{tuned.before.map_all:.4f}", f"{tuned.before.equal_bits_share:.3%}"],
            ["integer, fine-tuned", f"{tuned.after.map_all:.4f}", f"{tuned.after.equal_bits_share:.3%}"],
        ],
    )
    if seen is None:
        console.console().print("The checkpoints name no split of these images: some queries may have been trained on.")
    elif seen:
        console.console().print(f"{seen} of {sizes['queries']} queries were trained on before: the split is another.")
    console.console().print(f"code space {tuned.model.fingerprint[:12]}: encode the gallery anew")
    console.write_json(
        json, {"out": str(out), "fingerprint": tuned.model.fingerprint, "bad": labelled.bad, **tuned.record}
    )
