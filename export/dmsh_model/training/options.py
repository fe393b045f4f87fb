"""How a network is trained, as one frozen value; light, so that a command line can show its defaults."""

import math
from dataclasses import dataclass

from dmsh_serving.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image, uniform in the given range, applied as one affine map.

    Attributes:
        shift_pixels: up to so many, each way.
        rotation_degrees: up to so many, each way.
        scale: size changed by up to this fraction, each way.
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
        batch_size: images a step, at least 2 (the losses compare pairs).
        learning_rate: at its peak.
        weight_decay: of weight matrices and kernels; not of biases and normalisation.
        warmup_epochs: epochs until the peak.
        seed: of the weights, the order of the images and the augmentation.
        threads: CPU threads. Another count rounds sums differently and gives other weights. More than one pays for
            large networks on idle cores; beside other busy processes it can be many times slower.
        augmentation: random changes of the training images.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    warmup_epochs: int = 2
    seed: int = 0
    threads: int = 1
    augmentation: Augmentation = Augmentation()

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
            )
            if not getattr(self, name) >= least
        ]
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            problems.append(f"learning_rate = {self.learning_rate} must be above 0")
        if problems:
            raise InputError("training options: " + "; ".join(problems))


UNCHANGED = Augmentation(shift_pixels=0, rotation_degrees=0, scale=0)


FINE_TUNING = TrainingOptions(epochs=5, learning_rate=3e-4, weight_decay=0.0, warmup_epochs=1, augmentation=UNCHANGED)
"""Of the integer network; see :mod:`dmsh_model.finetune.run`.

Images stay as they are: what is to be followed are the teacher's codes of images like those to be served. The rate is
low because it starts where only rounding is wrong: at ten times the rate Adam, whose first steps move every weight by
about the same, adds more noise than it removes. A decay would pull weights off their grid.
"""
