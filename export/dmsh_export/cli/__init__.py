"""dmsh-export: checkpoint -> artefacts, each with its proof. Commands are thin; what they call lives beside this."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_export.cli.deploy import deploy
from dmsh_export.cli.encode import encode
from dmsh_export.cli.lint import lint
from dmsh_export.cli.prove import DialectName, integer_onnx, prove
from dmsh_export.cli.quantise import quantize
from dmsh_export.cli.repository import repository
from dmsh_export.cli.trt import trt
from dmsh_export.cli.tune import tune
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET
from dmsh_serving.commands import command, make_app
from dmsh_serving.console import JsonOption, SkipBadOption, console, progress, write_json
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.program import let_openmp_sleep, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_model.config import HashConfig

app = make_app("Export a trained DMSH model, and prove that no bit of any code changed.", "dmsh-export")
command(app, "dmsh-export quantize build/model --images photos --out build/integer")(quantize)

GENERATED_PIXELS = 64 * 80 * 80  # enough to find a broken export; a network of large images is slow on a CPU

Checkpoint = Annotated[
    Path, typer.Argument(help="A checkpoint folder, or a .pt/.pth state dict beside its config.json.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder of images, or an .npy file, uint8 [N, H, W, 3].  [default: generated images]"),
]


@command(
    app,
    "dmsh-export onnx build/model --out build/model.onnx --images photos",
    "dmsh-export onnx build/integer --out build/integer.onnx --images photos --dialect onnxruntime",
)
def onnx(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The ONNX file to write; its manifest goes beside it.")],
    images: Images = None,
    skip_bad: SkipBadOption = False,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Fold BN, laterals and fusion.")] = True,
    dialect: Annotated[
        DialectName | None, typer.Option(help="Runtime that an integer model is written for.  [default: onnxruntime]")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = DEFAULT_OPSET,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch size for which codes must not change.")] = 8,
    json: JsonOption = None,
) -> None:
    """Export one ONNX file, from uint8 image to packed code. It is written only if no bit differs from PyTorch."""
    import dmsh_model
    from dmsh_export.cli.tables import print_fold, print_parity
    from dmsh_export.to_onnx.float import export_onnx
    from dmsh_model.integer.reference import IntegerDMSH

    model = dmsh_model.load(checkpoint)
    if out.resolve() == checkpoint.resolve() or checkpoint.resolve() in out.resolve().parents:
        raise InputError(f"{out} lies in the checkpoint {checkpoint}, which it would damage: write elsewhere")
    if isinstance(model, IntegerDMSH):
        if not fold:
            raise InputError("--no-fold is for float checkpoints: an integer one was folded when it was quantised")
        block = _images(images, model.config, skip_bad)
        integer_onnx(model, out, block, dialect or DialectName.ONNXRUNTIME, opset, max_batch, json)
        return
    if dialect is not None:
        raise InputError(
            f"--dialect is for integer checkpoints, {checkpoint} is a float one: make an integer one with dmsh-export "
            "quantize"
        )
    with progress() as bar:
        task = bar.add_task("parity with PyTorch", total=None)
        export = export_onnx(
            model,
            out,
            _images(images, model.config, skip_bad),
            folded=fold,
            opset=opset,
            max_batch=max_batch,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_fold(export.fold_steps)
    print_parity(export.parity)
    console().print(f"wrote {export.path}")
    write_json(
        json,
        {
            "out": str(export.path),
            "fold": [vars(step) for step in export.fold_steps],
            "parity": export.parity.to_dict(),
        },
    )


command(app, "dmsh-export prove build/integer.onnx --against build/integer")(prove)
command(app, "dmsh-export deploy build/model --images photos --out build/service")(deploy)
command(app, "dmsh-export trt build/model.onnx --fp16 --out build/model.plan")(trt)


@command(app, "dmsh-export parity build/model build/model.onnx --images photos")
def parity(
    checkpoint: Checkpoint,
    targets: Annotated[
        list[str], typer.Argument(help="FILE.onnx, FILE.plan or triton://host:port/model", metavar="TARGET...")
    ],
    images: Images = None,
    skip_bad: SkipBadOption = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch size for which codes must not change.")] = 8,
    json: JsonOption = None,
) -> None:
    """Compare every bit of every image with PyTorch. The exit code is 1 if one bit is wrong."""
    import dmsh_model
    from dmsh_export.cli.tables import print_parity
    from dmsh_export.compare.parity import compare
    from dmsh_export.compare.runners import TorchRunner, runner_of
    from dmsh_export.engine.proof import record_parity

    runners = [runner_of(target) for target in targets]
    model = dmsh_model.load(checkpoint)
    block = _images(images, model.config, skip_bad)
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
    for target, found in zip(targets, report.targets, strict=True):
        if Path(target).suffix == ".plan":
            try:
                record_parity(Path(target), found.bits_compared)
            except OSError as error:
                console().print(f"note: the manifest of {target} cannot be told of it: {error.strerror}")


@command(app, "dmsh-export latency build/model build/model.onnx --batch 8 --rounds 20")
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


command(app, "dmsh-export repository build/model.onnx --gallery build/gallery --out build/repository")(repository)
command(app, "dmsh-export tune build/service/model.onnx build/service/openvino.onnx --out build/settings.json")(tune)
command(app, "dmsh-export lint build/repository")(lint)
command(
    app,
    "dmsh-export encode build/model.onnx --images photos --out build/codes --workers 2",
)(encode)


@command(app, "dmsh-export inspect build/model.onnx")
def inspect(
    artefact: Annotated[Path, typer.Argument(help="A file that dmsh-export wrote, beside its manifest.")],
    json: JsonOption = None,
) -> None:
    """Show what a file is, its source, and what was proven about it."""
    from dmsh_export.manifest import manifest_rows, read_manifest
    from dmsh_serving.console import print_table

    if not artefact.is_file():
        raise InputError(f"{artefact} is not a file: name an artefact of dmsh-export")
    manifest = read_manifest(artefact)
    shown = {key: value for key, value in manifest.items() if key not in ("format", "format_version", "parity", "fold")}
    rows = manifest_rows(shown)
    if "parity" in manifest:
        rows.append(["parity", "passed" if manifest["parity"]["passed"] else "FAILED"])
        rows += [
            [f"  {target['target']}", f"{target['wrong_bits']} wrong of {target['bits_compared']:,} bits"]
            for target in manifest["parity"]["targets"]
        ]
    print_table(str(artefact), ["", "value"], rows)
    write_json(json, manifest)


@command(app, "dmsh-export demo --out build/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")] = Path("build/demo"),
    drawings: Annotated[Path, typer.Option(help="The archive of drawings.")] = Path("demo/drawings.zip"),
    triton: Annotated[Path | None, typer.Option(help="tritonserver, its folder, or a Python environment.")] = None,
    json: JsonOption = None,
) -> None:
    """Train, deploy, serve and query on drawings; compare every bit.

    It leaves everything in a folder: checkpoint, images, galleries, the model repository and a report.html.
    """
    from dmsh_export.demo.run import run_demo

    write_json(json, run_demo(drawings, out, triton))


def _images(source: Path | None, config: "HashConfig", skip_bad: bool) -> "npt.NDArray[np.uint8]":
    """Read ``--images``, or generate some and say so."""
    if source is None:
        from dmsh_export.compare.generated import generated_images

        count = max(8, min(64, GENERATED_PIXELS // config.image_size**2))
        console().print(f"no --images given: using {count} generated ones; give real ones for a result that counts")
        return generated_images(count, config.image_size)
    from dmsh_serving.images.read import load_images, others_line

    loaded = load_images(source, config.image_size, config.framing, skip_bad=skip_bad)
    if others := others_line(source):
        console().print(others)
    if loaded.bad:
        console().print(f"skipped {len(loaded.bad)} images that cannot be read: {', '.join(loaded.bad[:5])}")
    return loaded.images


def main() -> None:
    """Run dmsh-export."""
    let_openmp_sleep()
    run(app)
