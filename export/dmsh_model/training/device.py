"""Where a training runs: the CPU, or a GPU with or without mixed precision."""

import torch

from dmsh_model.training.options import TrainingOptions
from dmsh_serving.errors import MissingError

__all__ = ["autocast", "training_device"]


def training_device(options: TrainingOptions, local_rank: int = 0) -> torch.device:
    """Return the device to train on; of several GPUs that of this process.

    Raises:
        MissingError: PyTorch sees no such GPU, or mixed precision is asked for and the GPU has no bfloat16.
    """
    if options.device == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= found:
        raise MissingError(f"--device cuda: PyTorch sees {found} GPUs here, {local_rank + 1} needed: use --device cpu")
    if options.mixed_precision and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise MissingError("--mixed-precision: this GPU has no bfloat16 (compute capability 8.0 has): leave it out")
    return torch.device("cuda", local_rank)


def autocast(device: torch.device, mixed_precision: bool) -> torch.autocast:
    """Return the context that a network's forward pass runs in: bfloat16, which has the range of float32, or as it is.

    With that range gradients need no scaling, as they would in float16.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed_precision)
