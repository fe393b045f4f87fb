"""Random changes of training images: one affine map and one bilinear resampling an image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsh_model.training.options import UNCHANGED, Augmentation

__all__ = ["augment"]


def augment(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Turn, resize, shift and perhaps mirror each image by its own random amounts; the border is repeated outwards.

    Args:
        images: (N, H, W, 3) uint8.
        options: the ranges.
        generator: gives the amounts; the same state gives the same result.

    Returns:
        (N, H, W, 3) float32, still 0 to 255.
    """
    if options == UNCHANGED:
        return images.to(torch.float32)
    count, height, width = images.shape[:3]
    spread = 2 * torch.rand((5, count), generator=generator) - 1
    angle = spread[0] * math.radians(options.rotation_degrees)
    zoom = 1 + spread[1] * options.scale
    mirror = torch.where(spread[4] < 0, -1.0, 1.0) if options.flip else torch.ones(count)
    # The map goes from a target position to the source position it is read from; the image spans -1 to 1.
    map_ = torch.empty((count, 2, 3))
    map_[:, 0, 0] = zoom * angle.cos() * mirror
    map_[:, 0, 1] = -zoom * angle.sin() * height / width
    map_[:, 1, 0] = zoom * angle.sin() * mirror * width / height
    map_[:, 1, 1] = zoom * angle.cos()
    map_[:, 0, 2] = spread[2] * options.shift_pixels * 2 / width
    map_[:, 1, 2] = spread[3] * options.shift_pixels * 2 / height
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    grid = F.affine_grid(map_, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1)
