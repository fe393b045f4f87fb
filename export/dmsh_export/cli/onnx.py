"""dmsh-export onnx."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_export.cli.parity import Checkpoint, Images, images_of
from dmsh_export.cli.prove import print_certificate
from dmsh_export.to_onnx.opsets import DEFAULT_OPSET
from dmsh_serving.console import JsonOption, SkipBadOption, console, progress, write_json
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_model.integer.reference import IntegerDMSH


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
        block = images_of(images, model.config, skip_bad)
        _integer_onnx(model, out, block, dialect or DialectName.ONNXRUNTIME, opset, max_batch, json)
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
            images_of(images, model.config, skip_bad),
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


def _integer_onnx(
    model: "IntegerDMSH",
    out: Path,
    images: "npt.NDArray[np.uint8]",
    dialect: DialectName,
    opset: int,
    max_batch: int,
    json: Path | None,
) -> None:
    from dmsh_export.cli.tables import print_parity
    from dmsh_export.to_onnx.integer import export_integer_onnx

    with progress() as bar:
        task = bar.add_task("parity with PyTorch", total=None)
        export = export_integer_onnx(
            model,
            out,
            images,
            dialect=dialect.value,
            opset=opset,
            max_batch=max_batch,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print_certificate(export.certificate)
    print_parity(export.parity)
    console().print(f"wrote {export.path}")
    write_json(
        json,
        {
            "out": str(export.path),
            "certificate": export.certificate.to_dict(),
            "parity": export.parity.to_dict(),
        },
    )
