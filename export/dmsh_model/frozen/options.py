"""How a head is trained on a frozen trunk, as one frozen value; light, so that a command line can show its defaults."""

import math
from dataclasses import dataclass

from dmsh_serving.errors import InputError

__all__ = ["FrozenOptions"]


@dataclass(frozen=True)
class FrozenOptions:
    """What a training on a frozen trunk has beyond its :class:`~dmsh_model.training.options.TrainingOptions`.

    Attributes:
        noise: deviation of the Gaussian noise on the features, which have a deviation of 1 each.
        unfreeze_after: after so many epochs the whole network is trained for the rest of them; 0 never does.
        unfrozen_rate: the learning rate of the whole network, as a share of the head's.
    """

    noise: float = 0.3
    unfreeze_after: int = 0
    unfrozen_rate: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if not (self.noise >= 0 and math.isfinite(self.noise)):
            raise InputError(f"noise = {self.noise} must be 0 or more")
        if self.unfreeze_after < 0:
            raise InputError(f"unfreeze_after = {self.unfreeze_after} must be 0 or more epochs")
        if not (self.unfrozen_rate > 0 and math.isfinite(self.unfrozen_rate)):
            raise InputError(f"unfrozen_rate = {self.unfrozen_rate} must be above 0")
