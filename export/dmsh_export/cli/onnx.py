"""dmsh-export onnx."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dmsh_export.cli.parity import Checkpoint, Images, images_of
from dmsh_export.cli.prove import print_certificate
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET
from dmsh_serving.console import JsonOption, SkipBadOption, console, progress, write_json
from dmsh_serving.errors import InputError


class DialectName(StrEnum):
    """Values of ``--dialect``."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


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
    max_batch: Annotated[
        int, typer.Option(min=1, help="Every batch size up to it is compared, and 16 and 32 of small images.")
    ] = 8,
    json: JsonOption = None,
) -> None:
    """Export one ONNX file, from uint8 image to packed code. It is written only if no bit differs from PyTorch."""
    import dmsh_model
    from dmsh_export.cli.tables import print_fold, print_parity
    from dmsh_export.to_onnx.float import OnnxExport, export_onnx
    from dmsh_export.to_onnx.integer import IntegerExport, export_integer_onnx
    from dmsh_model.integer.reference import IntegerDMSH

    model = dmsh_model.load(checkpoint)
    if out.resolve() == checkpoint.resolve() or checkpoint.resolve() in out.resolve().parents:
        raise InputError(f"{out} lies in the checkpoint {checkpoint}, which it would damage: write elsewhere")
    integer = isinstance(model, IntegerDMSH)
    if integer and not fold:
        raise InputError("--no-fold is for float checkpoints: an integer one was folded when it was quantised")
    if not integer and dialect is not None:
        raise InputError(
            f"--dialect is for integer checkpoints, {checkpoint} is a float one: make an integer one with dmsh-export "
            "quantize"
        )
    block = images_of(images, model.config, skip_bad)
    with progress() as bar:
        task = bar.add_task("parity with PyTorch", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        export: OnnxExport | IntegerExport
        if isinstance(model, IntegerDMSH):
            wanted = dialect or DialectName.ONNXRUNTIME
            export = export_integer_onnx(
                model, out, block, dialect=wanted.value, opset=opset, max_batch=max_batch, on_progress=advance
            )
        else:
            export = export_onnx(model, out, block, folded=fold, opset=opset, max_batch=max_batch, on_progress=advance)
    if isinstance(export, IntegerExport):
        print_certificate(export.certificate)
        proof: dict[str, object] = {"certificate": export.certificate.to_dict()}
    else:
        print_fold(export.fold_steps)
        proof = {"fold": [vars(step) for step in export.fold_steps]}
    print_parity(export.parity)
    console().print(f"wrote {export.path}")
    write_json(json, {"out": str(export.path), **proof, "parity": export.parity.to_dict()})
