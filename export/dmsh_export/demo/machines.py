"""On which machines the integer codes were compared: this one, and those that ``make test-cpus`` emulated here."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmsh_export.compare.machine import machine_name
from dmsh_export.compare.parity import ParityReport
from dmsh_serving.errors import InputError

__all__ = ["EMULATED", "MachineResult", "machines_compared"]

# Where the comparison writes it, in the repository, wherever the demo is run from.
EMULATED: Final = Path(__file__).resolve().parents[3] / "build" / "cpus" / "report.json"


@dataclass(frozen=True)
class MachineResult:
    """One machine: how many bits of an integer network were compared with PyTorch's there, and how many differed.

    ``fingerprint`` names the network: the demo trains its own, ``make test-cpus`` takes networks that stay.
    """

    machine: str
    fingerprint: str
    bits: int
    wrong_bits: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def machines_compared(reports: Sequence[ParityReport], emulated: Path = EMULATED) -> tuple[MachineResult, ...]:
    """Return this machine's result summed over ``reports``, then those of emulated ones.

    ``emulated`` is what ``make test-cpus`` wrote, ``{"machines": [{"machine", "fingerprint", "bits", "wrong_bits"}]}``;
    if there is none, it adds nothing.

    Raises:
        InputError: ``emulated`` is damaged.
    """
    targets = [target for report in reports for target in report.targets]
    here = MachineResult(
        machine_name(),
        reports[0].fingerprint,
        sum(target.bits_compared for target in targets),
        sum(target.wrong_bits for target in targets),
    )
    return (here, *_emulated(emulated))


def _emulated(path: Path) -> list[MachineResult]:
    try:
        return [
            MachineResult(run["machine"], run["fingerprint"], run["bits"], run["wrong_bits"])
            for run in json.loads(path.read_text())["machines"]
        ]
    except OSError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete it, or make test-cpus again") from error
