"""dmsh-export parity and latency: one model in several runtimes, bit by bit and in time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.console import JsonOption, SkipBadOption, console, printable, progress, write_json
from dmsh_serving.errors import CheckError, InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_model.config import HashConfig

GENERATED_PIXELS = 64 * 80 * 80  # enough to find a broken export; a network of large images is slow on a CPU

Checkpoint = Annotated[
    Path, typer.Argument(help="A checkpoint folder, or a .pt/.pth state dict beside its config.json.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder of images, or an .npy file, uint8 [N, H, W, 3].  [default: generated images]"),
]


def parity(
    checkpoint: Checkpoint,
    targets: Annotated[
        list[str], typer.Argument(help="FILE.onnx, FILE.plan or triton://host:port/model", metavar="TARGET...")
    ],
    images: Images = None,
    skip_bad: SkipBadOption = False,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Every batch size up to it is compared, and 16 and 32 of small images.")
    ] = 8,
    json: JsonOption = None,
) -> None:
    """Compare every bit of every image with PyTorch. The exit code is 1 if one bit is wrong."""
    import dmsh_model
    from dmsh_export.cli.tables import print_parity
    from dmsh_export.compare.parity import compare
    from dmsh_export.compare.runners import TorchRunner, runner_of
    from dmsh_export.engine.proof import record_parity
    from dmsh_export.engine.runner import TensorRTRunner

    runners = [runner_of(target) for target in targets]
    model = dmsh_model.load(checkpoint)
    block = images_of(images, model.config, skip_bad)
    with progress() as bar:
        task = bar.add_task("images", total=len(block))
        report = compare(
            TorchRunner(model),
            runners,
            block,
            max_batch=max_batch,
            on_progress=lambda done, _: bar.update(task, completed=done),
        )
    print_parity(report)
    write_json(json, report.to_dict())
    if not report.passed:
        raise CheckError(report.summary())
    for target, runner, found in zip(targets, runners, report.targets, strict=True):
        if isinstance(runner, TensorRTRunner):
            try:
                record_parity(Path(target), runner.sha256, found.bits_compared)
            except (OSError, InputError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                console().print(f"note: the manifest of {target} cannot be told of it: {reason}")


def latency(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="A checkpoint folder, FILE.onnx, FILE.plan or triton://host:port/model", metavar="TARGET..."
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls per target.")] = 100,
    json: JsonOption = None,
) -> None:
    """Time calls of several targets in turns, on generated images."""
    import dmsh_model
    from dmsh_export.cli.tables import print_latency
    from dmsh_export.compare.generated import generated_images
    from dmsh_export.compare.latency import measure
    from dmsh_export.compare.runners import TorchRunner, runner_of

    runners = [
        TorchRunner(dmsh_model.load(Path(target))) if Path(target).is_dir() else runner_of(target) for target in targets
    ]
    with progress() as bar:
        task = bar.add_task("rounds", total=rounds)
        rows = measure(
            runners,
            lambda image_size: generated_images(max(batch, 8), image_size),
            batch=batch,
            rounds=rounds,
            on_progress=lambda done, _: bar.update(task, completed=done),
        )
    print_latency(rows)
    write_json(json, {"latency": [row.to_dict() for row in rows]})


def images_of(source: Path | None, config: "HashConfig", skip_bad: bool) -> "npt.NDArray[np.uint8]":
    """Read ``--images``, or generate some and say so."""
    if source is None:
        from dmsh_export.compare.generated import generated_images

        count = max(8, min(64, GENERATED_PIXELS // config.image_size**2))
        console().print(f"no --images given: using {count} generated ones; give real ones for a result that counts")
        return generated_images(count, config.image_size)
    from dmsh_serving.images.read import load_images, others_line

    loaded = load_images(source, config.image_size, config.framing, skip_bad=skip_bad)
    if others := others_line(source):
        console().print(printable(others))
    if loaded.bad:
        console().print(f"skipped {len(loaded.bad)} images that cannot be read: {printable(', '.join(loaded.bad[:5]))}")
    return loaded.images
