"""dmsh-export quantize: a float checkpoint becomes an integer one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.console import JsonOption, SkipBadOption, console, print_table, progress, write_json

if TYPE_CHECKING:
    from dmsh_export.quantise.run import Quantised


def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A float checkpoint.")],
    images: Annotated[
        Path, typer.Option(help="Images like those to be served; one subfolder per class gives mAP as well.")
    ],
    out: Annotated[Path, typer.Option(help="Integer checkpoint to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Make an integer checkpoint: the same codes on every machine. Show what that costs."""
    from dmsh_export.quantise.checkpoint import quantise_checkpoint

    with progress() as bar:
        task = bar.add_task("calibrating", total=None)
        quantised = quantise_checkpoint(
            checkpoint,
            images,
            out,
            overwrite=overwrite,
            skip_bad=skip_bad,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_stage=lambda stage: bar.update(task, description=stage),
        )
    _print(quantised)
    console().print(f"wrote {out}, code space {quantised.model.fingerprint[:12]}: encode the gallery anew")
    write_json(json, {"out": str(out), "fingerprint": quantised.model.fingerprint, **quantised.record()})


def _print(quantised: "Quantised") -> None:
    print_table(
        "Layers on held-out images, against the float network",
        ["layer", "kind", "scale", "clipped", "signal to noise, dB", "accumulator, bits"],
        [
            [
                cost.name,
                cost.kind,
                f"{cost.scale:.3g}",
                f"{cost.clipped_share:.4%}",
                "-" if math.isinf(cost.signal_to_noise_db) else f"{cost.signal_to_noise_db:.1f}",
                "-" if cost.accumulator_bits is None else f"{cost.accumulator_bits:.1f}",
            ]
            for cost in quantised.layers
        ],
    )
    chosen, codes = quantised.chosen, quantised.codes
    rows = [
        ["calibration images", f"{quantised.calibration_images:,}"],
        ["padding", "the mean (a layer in front)" if quantised.centred else "grey, the value 128"],
        ["scales cover", chosen.policy],
        ["equalisation", f"{chosen.equalisation:g}"],
        ["weights rounded", "together, biases corrected" if chosen.corrected else "each to the nearest"],
        ["head fitted to the integer trunk", _refit(quantised)],
        ["held-out images", f"{codes.images:,}"],
        ["equal bits", f"{codes.equal_bits_share:.3%} of {codes.bits_compared:,}"],
        ["logits, signal to noise", f"{codes.logits_signal_to_noise_db:.1f} dB"],
    ]
    if codes.float_map is not None and codes.integer_map is not None:
        rows += [["mAP, float", f"{codes.float_map:.4f}"], ["mAP, integer", f"{codes.integer_map:.4f}"]]
    print_table("Codes, integer against float", ["", "value"], rows)


def _refit(quantised: "Quantised") -> str:
    refit = quantised.refit
    if refit.strength is None and not refit.followed:
        return "left as it was: no fit came closer"
    return f"{refit.before_db:.1f} -> {refit.after_db:.1f} dB, by {refit.images:,} images"
