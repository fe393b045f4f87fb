"""What was found on one GPU, and the page about it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dmsh_export.compare.latency import Latency

__all__ = ["GpuReport", "PlanResult", "markdown"]


@dataclass(frozen=True)
class PlanResult:
    """One plan on the GPU.

    Attributes:
        network: the network's name.
        precision: fp32, fp16 or int8 (the integer network).
        bits: compared with PyTorch's: the float network's, of int8 the integer network's.
        wrong_bits: of these.
        worst_logit_error: the largest difference of a logit.
        codes_in_batches: codes that were compared in batches of every size.
        changed_codes: of these, those that the batch changed.
        audit: the types that the engine's own layers show, or that it shows none.
        proof: what the build proved.
    """

    network: str
    precision: str
    bits: int
    wrong_bits: int
    worst_logit_error: float
    codes_in_batches: int
    changed_codes: int
    audit: str
    proof: str

    @property
    def must_be_exact(self) -> bool:
        """Whether a wrong bit is a failure: FP16 codes are a code space of their own."""
        return self.precision != "fp16"

    @property
    def passed(self) -> bool:
        """Whether no batch changed a code, and no bit is wrong where none may be."""
        return not self.changed_codes and not (self.must_be_exact and self.wrong_bits)


@dataclass(frozen=True)
class GpuReport:
    """Everything that ``make gpu`` found on one GPU.

    Attributes:
        gpu: its name and compute capability.
        built_with: the flavour of TensorRT, its version, and why this one.
        plans: each plan.
        latencies: {network: what was timed, in turns}.
        tests: the last line of the tests that need a GPU.
        tests_passed: whether they all passed.
    """

    gpu: str
    built_with: str
    plans: tuple[PlanResult, ...]
    latencies: dict[str, tuple[Latency, ...]]
    tests: str
    tests_passed: bool

    def failures(self) -> list[str]:
        """Return one line for each plan or test that failed."""
        failed = [
            f"{plan.network} {plan.precision}: {plan.wrong_bits:,} of {plan.bits:,} bits are wrong, "
            f"{plan.changed_codes:,} of {plan.codes_in_batches:,} codes change with the batch"
            for plan in self.plans
            if not plan.passed
        ]
        return failed if self.tests_passed else [*failed, f"the tests that need a GPU: {self.tests}"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"passed": not self.failures(), **dataclasses.asdict(self)}


def markdown(report: GpuReport) -> str:
    """Return the whole page."""
    parts = [
        f"# TensorRT on {report.gpu}",
        "    make gpu          # writes this page, on the machine that has the GPU",
        f"Plans built with {report.built_with}. Tests that need a GPU: {report.tests}.",
        "FP32 and INT8 plans must give PyTorch's very bits, INT8 those of the integer network. FP16 codes are a code "
        "space of their own: what differs is measured. Images are also compared with themselves in batches "
        "of 1 to 32.",
        _table(
            ["network", "plan", "wrong bits", "worst logit error", "codes that a batch changed", "engine", "proof"],
            [
                [
                    plan.network,
                    plan.precision.upper(),
                    f"{plan.wrong_bits:,} of {plan.bits:,}",
                    f"{plan.worst_logit_error:.1e}" if plan.worst_logit_error else "0",
                    f"{plan.changed_codes:,} of {plan.codes_in_batches:,}",
                    plan.audit,
                    plan.proof,
                ]
                for plan in report.plans
            ],
        ),
        "## Speed",
        "In turns in one run, medians; images come from the host's memory and codes go back there.",
    ]
    for network, rows in report.latencies.items():
        cells = [
            [row.target, str(row.batch), f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.images_per_s:,.0f}"]
            for row in rows
        ]
        parts.append(f"**{network}**\n\n" + _table(["encoder", "batch", "p50 ms", "p99 ms", "images/s"], cells))
    return "\n\n".join(parts) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
