"""The networks on which the encoders are timed, and their images.

Speed does not depend on weights, so they are random, from a seed. Wrong bits do, so the networks get what training
would give them: batch norm statistics of real images, and bits that are set for half of the images.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.data.load import MNIST_5K, load_labelled
from dmsh_model.network import DMSH
from dmsh_serving.errors import InputError

__all__ = ["BACKBONES", "DEMO", "NETWORKS", "Images", "fit_statistics", "network", "photograph_crops", "real_images"]

Images = npt.NDArray[np.uint8]

DEMO = "demo"
BACKBONES = ("resnet18", "resnet50", "efficientnet_lite0", "vgg19")
NETWORKS = (DEMO, *BACKBONES)
_SIZE = 224
_SEED = 0
_DEMO_CHECKPOINT = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
_AT_ONCE = 8  # images of one batch when statistics are measured


def network(name: str, images: Images) -> DMSH:
    """Return the demo's trained network, or a backbone of :data:`BACKBONES` with seeded weights fitted to ``images``.

    Raises:
        InputError: another name.
    """
    if name == DEMO:
        return checkpoint.load(_DEMO_CHECKPOINT)
    if name not in BACKBONES:
        raise InputError(f"no network {name!r} to time, there are {', '.join(NETWORKS)}")
    torch.manual_seed(_SEED)
    model = DMSH(HashConfig(backbone=name, image_size=_SIZE))
    fit_statistics(model, images)
    return model.eval()


@torch.no_grad()
def fit_statistics(model: DMSH, images: Images) -> None:
    """Give batch norms the statistics of ``images`` (N, H, W, 3) uint8, and set each hash bit for half of them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        # timm starts the last one of a residual branch at 0: the branch would add nothing.
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.2)
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    model.train()
    for start in range(0, len(images), _AT_ONCE):
        model(torch.from_numpy(images[start : start + _AT_ONCE]))
    model.eval()
    model.hash.bias.sub_(torch.from_numpy(np.median(model.logits(images, batch_size=_AT_ONCE), axis=0)))


def real_images(name: str, count: int) -> Images:
    """Return ``count`` real images (count, H, W, 3) uint8 for a network: digits for the demo's, photographs else."""
    if name == DEMO:
        every = load_labelled(MNIST_5K, checkpoint.load(_DEMO_CHECKPOINT).config.image_size).images
        return np.ascontiguousarray(every[np.linspace(0, len(every) - 1, count).astype(np.int64)])
    return photograph_crops(count, _SIZE)


def photograph_crops(count: int, size: int) -> Images:
    """Return square crops (count, size, size, 3) uint8, of many scales and places, of two photographs.

    They are scikit-learn's samples, a temple and a flower, both public (CC BY). An even number of each, half mirrored.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(_SEED)
    crops = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.3, 1.0))
        left, top = (int(random.integers(0, edge - side + 1)) for edge in photograph.size)
        crop = photograph.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        crops[index] = np.asarray(crop)[:, :: random.choice((-1, 1))]
    return crops
