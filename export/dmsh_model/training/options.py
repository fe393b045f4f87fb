"""How a network is trained, as one frozen value; light, so that a command line can show its defaults."""

import math
from dataclasses import dataclass

from dmsh_serving.errors import InputError

__all__ = ["FINE_TUNING", "UNCHANGED", "Augmentation", "TrainingOptions"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image, uniform in their ranges, applied as one affine map.

    Attributes:
        shift_pixels: largest shift, each way.
        rotation_degrees: largest rotation, each way.
        scale: largest change of size as a fraction, each way.
        flip: mirror each image with probability one half; wrong for digits and text.
    """

    shift_pixels: float = 2.0
    rotation_degrees: float = 10.0
    scale: float = 0.1
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse ranges that are negative, or a scale that could vanish."""
        if not (self.shift_pixels >= 0 and self.rotation_degrees >= 0 and 0 <= self.scale < 1):
            raise InputError(f"{self}: ranges must not be negative, and scale below 1")


@dataclass(frozen=True)
class TrainingOptions:
    """AdamW with a linear warm-up of the learning rate and a cosine descent to zero.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, at least 2 (the losses compare pairs).
        learning_rate: its peak.
        weight_decay: decay of weight matrices and kernels; biases and normalisation have none.
        warmup_epochs: epochs until the peak.
        seed: random seed for the weights, the order of the images and the augmentation.
        threads: CPU threads. Another number rounds sums differently and gives other weights. More than one pays for
            large networks on idle cores; beside other busy processes it can be many times slower.
        augmentation: random changes of the training images.
        trunk_rate: learning rate of the backbone, as a share of the rest's; below 1 for a pretrained one.
        validation_share: share of the training images that are not learnt from but queried after every epoch, against
            the others; the weights of the epoch with the best mAP are kept. 0 keeps the last epoch's.
        patience: stop after this many epochs without a better mAP; 0 never stops early.
        device: ``cpu`` or ``cuda``. Sums on a GPU may differ from one run to the next, and the weights with them.
        mixed_precision: compute the network in bfloat16 if that is safe, its losses in float32; on a GPU alone.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    warmup_epochs: int = 2
    seed: int = 0
    threads: int = 1
    augmentation: Augmentation = Augmentation()
    trunk_rate: float = 1.0
    validation_share: float = 0.0
    patience: int = 0
    device: str = "cpu"
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with, naming every wrong field at once."""
        problems = [
            f"{name} = {getattr(self, name)} must be at least {least}"
            for name, least in (
                ("epochs", 1),
                ("batch_size", 2),
                ("weight_decay", 0),
                ("warmup_epochs", 0),
                ("seed", 0),
                ("threads", 1),
                ("patience", 0),
            )
            if not getattr(self, name) >= least
        ]
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            problems.append(f"learning_rate = {self.learning_rate} must be above 0")
        if not (self.trunk_rate >= 0 and math.isfinite(self.trunk_rate)):
            problems.append(f"trunk_rate = {self.trunk_rate} must be at least 0")
        if not 0 <= self.validation_share <= 0.5:
            problems.append(f"validation_share = {self.validation_share} must be 0 to 0.5")
        if self.patience > 0 and not self.validation_share:
            problems.append(f"patience = {self.patience} needs a validation_share, whose mAP is waited for")
        if self.device not in ("cpu", "cuda"):
            problems.append(f"device = {self.device} must be cpu or cuda")
        if self.mixed_precision and self.device != "cuda":
            problems.append("mixed_precision is for a GPU, device = cuda: on a CPU it is slower than float32")
        if problems:
            raise InputError("training options: " + "; ".join(problems))


UNCHANGED = Augmentation(shift_pixels=0.0, rotation_degrees=0.0, scale=0.0)

FINE_TUNING = TrainingOptions(epochs=20, learning_rate=1e-3, weight_decay=0.0, warmup_epochs=1, augmentation=UNCHANGED)
"""How the head of an integer network is fine-tuned; see :mod:`dmsh_model.finetune.run`.

Images are not augmented, since the trunk sees each once. A decay would pull weights off their grid. For the whole
network the rate is too high: there Adam, whose first steps move every weight by about the same amount, adds more noise
than it removes; 3e-4 and 5 epochs do.
"""
