"""Results as tables for people."""

from collections.abc import Callable, Sequence

from dmsh_export.compare.latency import Latency
from dmsh_export.compare.parity import ParityReport, TargetParity
from dmsh_export.to_onnx.fold import FoldStep
from dmsh_serving.console import console, print_table


def print_parity(report: ParityReport) -> None:
    """Print one column a target."""
    measures: list[tuple[str, Callable[[TargetParity], str]]] = [
        ("code space", lambda target: target.fingerprint[:12]),
        ("images", lambda target: f"{target.images:,}"),
        ("bits compared", lambda target: f"{target.bits_compared:,}"),
        ("wrong bits", lambda target: f"{target.wrong_bits:,}"),
        ("images touched", lambda target: f"{target.images_touched:,}"),
        ("wrong-bit rate below, at 95%", lambda target: f"{target.wrong_bit_rate_upper_95:.1e}"),
        ("worst logit error", lambda target: f"{target.worst_logit_error:.1e}"),
        ("smallest margin |logit|", lambda target: f"{target.smallest_margin:.1e}"),
        ("bits closer to 0 than that error", lambda target: f"{target.bits_at_risk:,}"),
        ("codes in batches", lambda target: f"{target.invariance.codes_compared:,}"),
        ("  of these sizes", lambda target: target.invariance.sizes),
        ("  codes that changed", lambda target: f"{target.invariance.wrong_codes:,}"),
    ]
    print_table(
        f"Codes against {report.reference}'s (code space {report.fingerprint[:12]})",
        ["", *(target.target for target in report.targets)],
        [[name, *(measure(target) for target in report.targets)] for name, measure in measures],
    )

    for target in report.targets:
        if target.fingerprint != report.fingerprint:
            console().print(guard_line(target, report.reference))


def guard_line(target: TargetParity, reference: str) -> str:
    """Say whether a low-precision encoder can serve the reference's gallery by itself, on the images compared."""
    start = f"{target.target} is another code space than {reference}: "
    if target.bits_at_risk:
        return start + (
            f"the guard is needed to keep {reference}'s gallery, {target.bits_at_risk:,} of "
            f"{target.bits_compared:,} bits are closer to 0 than its worst error"
        )
    return start + (
        f"no guard is needed for these images, the smallest margin {target.smallest_margin:.1e} is above its worst "
        f"error {target.worst_logit_error:.1e}"
    )


def print_fold(steps: Sequence[FoldStep]) -> None:
    """Print what was folded, in groups, and each thing that was not, with its reason."""
    norms = [step for step in steps if step.folded and step.what.startswith("BN ") and "laterals" not in step.what]
    rows = [["BN of the backbone", "folded", f"{len(norms)} into their convolutions"]] if norms else []
    rows += [[step.what, "folded" if step.folded else "kept", step.why] for step in steps if step not in norms]
    print_table("Folding (products in float64)", ["what", "", "why"], rows)


def print_latency(rows: Sequence[Latency]) -> None:
    """Print one row a target; ratios are against the first."""
    print_table(
        "Latency of one call, rounds interleaved",
        ["target", "batch", "rounds", "p50 ms", "p90 ms", "p99 ms", "images/s", "against the first"],
        [
            [
                row.target,
                str(row.batch),
                str(row.rounds),
                f"{row.p50_ms:.2f}",
                f"{row.p90_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.images_per_s:,.1f}",
                f"{row.images_per_s / rows[0].images_per_s:.2f}x",
            ]
            for row in rows
        ],
    )
