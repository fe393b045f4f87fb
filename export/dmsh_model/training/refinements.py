"""What a training may do beyond its options, as one frozen value; light, as they are."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dmsh_serving.errors import InputError


@dataclass(frozen=True)
class Refinements:
    """What a training may do beyond its :class:`~dmsh_model.training.options.TrainingOptions`; by default nothing.

    A checkpoint records only what is not the default, so that records of before these existed read the same.

    Attributes:
        trunk_rate: learning rate of the backbone, as a share of the rest's; below 1 for a pretrained one.
        validation_share: of the training images that are not learnt from but queried after every epoch, against the
            others; the weights of the epoch with the best mAP are kept. 0 keeps the last epoch's.
        patience: stop after so many epochs without a better mAP; 0 never stops early.
        device: ``cpu`` or ``cuda``. A GPU's sums may differ from one run to the next, and with them the weights.
        mixed_precision: compute the network in bfloat16 where that is safe, its losses in float32; on a GPU alone.
    """

    trunk_rate: float = 1.0
    validation_share: float = 0.0
    patience: int = 0
    device: str = "cpu"
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with, naming every wrong field at once."""
        problems = []
        if not (self.trunk_rate >= 0 and math.isfinite(self.trunk_rate)):
            problems.append(f"trunk_rate = {self.trunk_rate} must be 0 or more")
        if not 0 <= self.validation_share <= 0.5:
            problems.append(f"validation_share = {self.validation_share} must be 0 to 0.5")
        if self.patience < 0:
            problems.append(f"patience = {self.patience} must be 0 or more")
        if self.patience and not self.validation_share:
            problems.append(f"patience = {self.patience} needs a validation_share, whose mAP is waited for")
        if self.device not in ("cpu", "cuda"):
            problems.append(f"device = {self.device} must be cpu or cuda")
        if self.mixed_precision and self.device != "cuda":
            problems.append("mixed_precision is for a GPU, device = cuda: on a CPU it is slower than float32")
        if problems:
            raise InputError("training options: " + "; ".join(problems))

    def record(self) -> dict[str, Any]:
        """Return the fields that are not the default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
