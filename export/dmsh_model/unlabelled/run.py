"""Images without labels -> a checkpoint: PCA and ITQ of the features of a sample, written as the network's layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.frozen.taps import PooledTrunk, Taps, require_linear_pooling
from dmsh_model.network import DMSH, laterals_of
from dmsh_model.training.device import training_device
from dmsh_model.training.loop import own_random_numbers_and_threads
from dmsh_model.training.options import TrainingOptions
from dmsh_model.unlabelled.itq import Floats, Moments, Projection, principal_components, rotation
from dmsh_model.unlabelled.sample import sampled_files
from dmsh_model.weights.fill import fill
from dmsh_model.weights.read import Pretrained
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import iter_listed_batches, none_away

__all__ = ["fit_unlabelled"]

DEFAULT_SAMPLE = 20_000
_FOR_ROTATION = 20_000  # vectors: K by K numbers need no more
_BATCH = 128


def linear_config(config: HashConfig) -> HashConfig:
    """Return ``config`` as PCA and ITQ fill it: a component per lateral feature, no activation."""
    values = config.to_dict()
    values |= {"lateral_features": config.bits, "fusion_features": config.bits, "fusion_activation": "none"}
    return HashConfig.from_dict({**values, "num_classes": 0})


def fit_unlabelled(
    config: HashConfig,
    folder: Path,
    out: Path,
    pretrained: Pretrained,
    *,
    sample: int = DEFAULT_SAMPLE,
    options: TrainingOptions = TrainingOptions(),
    cache: Path | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    on_taps: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Learn a hash layer from a sample of the images below ``folder`` and write its checkpoint to ``out``.

    One batch of images, one matrix of F by F and at most 20,000 feature vectors are in memory, however many there are.

    Args:
        config: the network; its widths and its fusion's activation are replaced: see :func:`linear_config`.
        folder: images, in any subfolders, whose names mean nothing here.
        out: the checkpoint folder.
        pretrained: weights of the trunk.
        sample: the most images to look at.
        options: ``seed``, ``threads`` and ``device`` count.
        cache: a folder that keeps the features; None keeps none.
        overwrite: replace the checkpoint at ``out``.
        skip_bad: leave out files that cannot be read.
        on_taps: called with (images done, images in all).
        on_note: called with a line for people.

    Returns:
        The record that the checkpoint keeps.

    Raises:
        InputError: no images, too few or too much alike for so many bits, a file that cannot be read, ``out`` is
            taken, or weights of another network.
        CheckError: a feature is NaN or infinite.
    """
    if sample < 2:
        raise InputError(f"sample = {sample} must be at least 2 images")
    checkpoint.check_target(out, overwrite=overwrite)
    config = linear_config(config)
    require_linear_pooling(config)
    names = sampled_files(folder, sample, options.seed)
    with own_random_numbers_and_threads(options):
        torch.manual_seed(options.seed)
        model = DMSH(config).eval()
        fill(model.backbone, pretrained.tensors, pretrained.source)
        trunk = PooledTrunk(model, cache, device=training_device(options), on_note=on_note)
        moments = Moments(sum(trunk.channels))
        kept: list[Taps] = []
        bad = 0
        read = iter_listed_batches(
            folder, names, config.image_size, _BATCH, config.framing, skip_bad=skip_bad, on_progress=on_taps
        )
        for batch in none_away(folder, read):
            bad += len(batch.bad)
            if len(batch.images):
                taps = trunk.of_images(batch.images)
                if moments.count < _FOR_ROTATION:
                    kept.append(taps)
                moments.add(taps)
        projection = principal_components(moments, config.bits)
        turned = rotation(projection.of(np.concatenate(kept)), options.seed)
        write_layers(model, projection, turned)
    record = {
        "unlabelled": {"method": "PCA and ITQ", "images": moments.count, "bad": bad, "seed": options.seed},
        "explained_variance": projection.explained,
        "source": folder.resolve().name,
        "pretrained_sha256": pretrained.sha256,
    }
    checkpoint.save(model, out, training=record, overwrite=overwrite)
    return record


@torch.no_grad()
def write_layers(model: DMSH, projection: Projection, turned: Floats) -> None:
    """Write PCA into the laterals, the sum over scales into the fusion and the rotation into the hash layer."""
    laterals = laterals_of(model)
    scaled = torch.from_numpy(projection.components.T / projection.deviation)  # (K, F)
    channels = [lateral.conv.in_channels for lateral in laterals]
    centres = torch.split(torch.from_numpy(projection.mean), channels)
    for lateral, weight, centre in zip(laterals, torch.split(scaled, channels, 1), centres, strict=True):
        norm = lateral.norm
        _set(lateral.conv.weight, weight[:, :, None, None])
        _set(norm.running_mean, weight @ centre)
        _set(norm.weight, torch.full_like(norm.weight, 1 + norm.eps).sqrt())  # undoes the epsilon beside variance 1
    identity = torch.eye(model.config.bits)
    _set(model.fusion.weight, identity.repeat(1, len(laterals)))
    _set(model.fusion.bias, torch.zeros_like(model.fusion.bias))
    _set(model.hash.weight, torch.from_numpy(turned.T))
    _set(model.hash.bias, torch.zeros_like(model.hash.bias))


def _set(target: Tensor | None, values: Tensor) -> None:
    if target is not None:
        target.copy_(values)
