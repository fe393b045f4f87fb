"""dmsh-export prove."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.console import JsonOption, console, print_table, write_json
from dmsh_serving.errors import CheckError, InputError

if TYPE_CHECKING:
    from dmsh_export.prove.certificate import Certificate


def prove(
    model: Annotated[Path, typer.Argument(help="An ONNX file of an integer checkpoint, in any dialect.")],
    against: Annotated[Path | None, typer.Option(help="Integer checkpoint whose network it must be.")] = None,
    json: JsonOption = None,
) -> None:
    """Prove which integer network an ONNX file computes. Only its graph is read; a failure names the node."""
    import dmsh_model
    from dmsh_export.prove.certificate import certify
    from dmsh_model.integer.reference import IntegerDMSH

    checkpoint = dmsh_model.load(against) if against else None
    if checkpoint is not None and not isinstance(checkpoint, IntegerDMSH):
        raise InputError(f"{against} is a float checkpoint: name the integer one that dmsh-export quantize made of it")
    certificate = certify(model, checkpoint.network if checkpoint else None)
    if checkpoint is not None and certificate.fingerprint != checkpoint.fingerprint:
        raise CheckError(
            f"{model} is the network of {against}, but for images of another framing than the checkpoint's "
            f"({checkpoint.config.framing}): export the checkpoint again"
        )
    print_certificate(certificate)
    write_json(json, certificate.to_dict())


def print_certificate(certificate: "Certificate") -> None:
    """Print the bound of each layer, then the conditions a runtime must meet."""
    print_table(
        f"{certificate.model}: integer network {certificate.network_hash[:12]}, {certificate.dialect} dialect",
        [
            "node",
            "layer",
            "least sum",
            "greatest sum",
            "largest partial sum",
            "below 2^31",
            "below 2^24",
            "shifts",
            "to",
        ],
        [
            [
                bound.node,
                bound.kind,
                f"{bound.lowest:,}",
                f"{bound.highest:,}",
                f"{bound.peak:,}",
                "yes",
                "yes" if bound.below_float32 else "no",
                "{} to {}".format(*bound.shifts),
                f"{bound.low} to {bound.high}" if bound.kind != "Logits" else "the logits",
            ]
            for bound in certificate.bounds
        ],
    )
    print_table(
        "Exact where",
        ["runtime", "needs", "because"],
        [[condition.runtime, condition.needs, condition.why] for condition in certificate.conditions],
    )
    held = f"the checkpoint {certificate.checkpoint[:12]}" if certificate.checkpoint else "its own fingerprint"
    console().print(f"proven: its integers are those of {held}; its code space is {certificate.fingerprint[:12]}")
