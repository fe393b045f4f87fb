"""``dmsh-train fit --unlabelled``: a checkpoint from images without classes."""

import time
from pathlib import Path
from typing import Any

from dmsh_model.config import HashConfig
from dmsh_model.training.options import TrainingOptions
from dmsh_serving import console
from dmsh_serving.errors import InputError


def fit_without_labels(
    data: str,
    out: Path,
    fields: dict[str, Any],
    pretrained: str | None,
    training: TrainingOptions,
    *,
    sample: int,
    cache: Path | None,
    overwrite: bool,
    skip_bad: bool,
    json: Path | None,
) -> None:
    """Learn from the folder ``data``, write the checkpoint ``out`` and print what it holds; see :func:`fit_unlabelled`.

    Raises:
        InputError: no weights, or ``data`` is no folder; and what :func:`fit_unlabelled` refuses.
    """
    if pretrained is None:
        raise InputError("--unlabelled reads the features of trained weights: give them as --pretrained")
    folder = Path(data)
    if not folder.is_dir():
        raise InputError(f"--unlabelled takes a folder of images, {data} is none")
    HashConfig(**fields)  # checked before torch is imported
    from dmsh_model.unlabelled.run import fit_unlabelled
    from dmsh_model.weights.read import read_pretrained

    say = console.console().print
    classes = sum(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    if classes > 1:
        say(f"{folder}: its {classes} folders are not used as classes; without --unlabelled they are")
    weights = read_pretrained(pretrained, fields["backbone"])
    began = time.monotonic()
    with console.progress() as display:
        task = display.add_task("features", total=None)

        def show(done: int, total: int) -> None:
            speed = done / max(time.monotonic() - began, 1e-9)
            display.update(task, completed=done, total=total, description=f"features, {speed:.0f} images/s")

        record = fit_unlabelled(
            HashConfig(**(weights.preprocessing | fields)),
            folder,
            out,
            weights,
            sample=sample,
            options=training,
            cache=cache,
            overwrite=overwrite,
            skip_bad=skip_bad,
            on_taps=show,
            on_note=say,
        )
    console.print_table(
        f"{out}: {fields['backbone']}, {fields['bits']} bits by PCA and ITQ, from {data}",
        ["measure", "value"],
        [
            ["images learnt from", str(record["unlabelled"]["images"])],
            ["unreadable images left out", str(record["unlabelled"]["bad"])],
            ["variance of the features that the bits hold", f"{record['explained_variance']:.1%}"],
        ],
    )
    console.write_json(json, {"out": str(out), **record})
