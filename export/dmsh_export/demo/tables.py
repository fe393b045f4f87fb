"""The demo's figures as tables for a terminal; :mod:`.page` draws the same."""

from dmsh_export.demo.page import DemoPage, speed_name, step_name
from dmsh_serving.console import console, print_table

__all__ = ["print_demo"]


def print_demo(page: DemoPage) -> None:
    """Print every table of the demo."""
    figures = page.figures
    print_table(
        f"Does fusing scales pay? ({figures['training_seconds']:.0f} s of training, features included)",
        ["64 bits, in FP32", "mAP@all"],
        [
            ["the last stage alone", f"{figures['map_last_stage']:.4f}"],
            ["three scales, fused", f"{figures['map_float']:.4f}"],
        ],
    )
    print_table(
        "Is every bit PyTorch's? (in batches: the codes of the same images in batches of 1 to 32)",
        ["", "bits", "wrong", "largest logit error", "in batches", "wrong"],
        [
            [
                step_name(target),
                f"{target.bits_compared:,}",
                f"{target.wrong_bits:,}",
                f"{target.worst_logit_error:.1e}" if target.worst_logit_error else "0",
                f"{target.invariance.codes_compared:,}",
                f"{target.invariance.wrong_codes:,}",
            ]
            for report in page.parity
            for target in report.targets
        ],
    )
    print_table(
        "On which machines were the integer codes compared?",
        ["machine", "network", "bits", "wrong"],
        [
            [machine.machine, machine.fingerprint[:12], f"{machine.bits:,}", f"{machine.wrong_bits:,}"]
            for machine in page.machines
        ],
    )
    neighbours = f"{figures['neighbours']:,}"
    print_table(
        "Are the answers the same? (every id and distance of every ranking)",
        [f"{len(page.seconds)} queries ranked by", "neighbours", "other", "mAP@all"],
        [
            ["float codes, PyTorch", "", "", f"{figures['map_float']:.6f}"],
            ["integer codes, PyTorch", neighbours, "", f"{figures['map_integer']:.6f}"],
            ["integer codes, Triton over gRPC", neighbours, "0", f"{figures['map_triton']:.6f}"],
        ],
    )
    console().print(
        f"{figures['equal_bits']:.3%} of the integer code bits are the float codes', {figures['equal_codes']:.1%} of "
        "the codes: another code space, so the gallery was encoded anew"
    )
    print_table(
        "How fast is the encoder? (in turns, medians)",
        ["", "batch", "p50 ms", "images/s"],
        [
            [speed_name(speed), str(speed.batch), f"{speed.p50_ms:.2f}", f"{speed.images_per_s:,.0f}"]
            for speed in page.speeds
        ],
    )
    latency = page.latency
    print_table(
        "How long does one query take?",
        ["image in, neighbours out", "p50 ms", "p90 ms", "p99 ms"],
        [["Triton, over gRPC", *(f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms))]],
    )
