"""Pooled features of a frozen trunk: each tap's mean over all positions, one vector per image, kept on disk.

A tap of a block of images is one file, named by what it was computed from: the trunk's weights and preprocessing, the
pixels, and the level of the tap. So an interrupted run goes on where it was, the same images are never computed twice,
a network with fewer taps of the same trunk reads some of the files, and another trunk or another image is another file.
Files may be deleted at any time.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH, Images, global_pool, laterals_of
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.files import write_atomically

__all__ = ["PooledTrunk", "Taps", "require_linear_pooling"]

Taps = npt.NDArray[np.float32]
"""(N, F) float32: the pooled features of every tap, one tap after the other."""

_BLOCK = 128  # images per file
_BATCH = 16  # its maps stay in a second-level cache: a third faster than 64
_FORMAT = "dmsh-taps/2"


class PooledTrunk:
    """The trunk of a network: images (N, H, W, 3) uint8 -> pooled taps (N, F) float32, with a cache."""

    def __init__(
        self,
        model: DMSH,
        cache: Path | None = None,
        *,
        device: torch.device = torch.device("cpu"),
        on_note: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Look at the trunk of ``model``; later changes of it are not seen.

        Args:
            model: its normalisation and backbone are used, in eval mode.
            cache: a folder, made if it is missing; None keeps nothing.
            device: where to compute.
            on_note: called with a line for people if the cache holds the taps of other weights only.

        Raises:
            InputError: the network pools otherwise, so that its head cannot be computed from pooled taps, or
                ``cache`` is no folder.
        """
        require_linear_pooling(model.config)
        self.channels = [lateral.conv.in_channels for lateral in laterals_of(model)]
        self._levels = model.taps
        self._trunk = nn.ModuleList([model.normalise, model.backbone])
        self._device = device
        self._folder = None
        if cache is not None:
            if cache.exists() and not cache.is_dir():
                raise InputError(f"{cache} is not a folder: taps are kept in one")
            self._folder = cache / f"taps-{trunk_key(model)[:16]}"
            others = [] if self._folder.exists() else list(cache.glob("taps-*"))
            if others:
                on_note(f"{cache} holds the features of other weights or preprocessing: they are computed anew")
            self._folder.mkdir(parents=True, exist_ok=True)

    def of_images(self, images: Images, on_progress: Callable[[int, int], object] | None = None) -> Taps:
        """Return the taps of ``images`` (N, H, W, 3) uint8, which may be a mapped file; (N, F) float32.

        ``on_progress`` is called with (images done, images in all).

        Raises:
            CheckError: a feature is NaN or infinite.
        """
        out = np.empty((len(images), sum(self.channels)), np.float32)
        for start in range(0, len(images), _BLOCK):
            block = np.ascontiguousarray(images[start : start + _BLOCK])
            out[start : start + len(block)] = self._of_block(block)
            if on_progress:
                on_progress(start + len(block), len(images))
        return out

    def _of_block(self, block: Images) -> Taps:
        if self._folder is None:
            return self._computed(block)
        digest = hashlib.sha256(repr(block.shape).encode())
        digest.update(block.data)
        files = [self._folder / f"{digest.hexdigest()[:32]}-{level}.npy" for level in self._levels]
        kept = (_read(file, (len(block), count)) for file, count in zip(files, self.channels, strict=True))
        parts = [part for part in kept if part is not None]
        if len(parts) == len(files):
            return np.concatenate(parts, 1)
        found = self._computed(block)
        for file, part in zip(files, np.split(found, np.cumsum(self.channels)[:-1], 1), strict=True):
            buffer = io.BytesIO()
            np.save(buffer, part, allow_pickle=False)
            write_atomically(file, buffer.getvalue())
        return found

    @torch.inference_mode()
    def _computed(self, block: Images) -> Taps:
        trunk = self._trunk.eval().to(self._device)
        normalise, backbone = trunk
        parts = []
        for start in range(0, len(block), _BATCH):
            batch = torch.from_numpy(block[start : start + _BATCH]).to(self._device)
            maps = backbone(normalise(batch))
            parts.append(torch.cat([global_pool(each, "avg") for each in maps], 1).cpu().numpy())
        taps: Taps = np.concatenate(parts)
        if not np.isfinite(taps).all():
            raise CheckError("a feature of the trunk is NaN or infinite: are its weights whole?")
        return taps


def require_linear_pooling(config: HashConfig) -> None:
    """Raise :class:`InputError` if the head of such a network cannot be computed from pooled taps.

    A 1x1 convolution with BN and the mean over positions commute; a nonlinearity between them, or a maximum, does not.
    """
    if config.lateral_activation != "none" or config.pooling != "avg":
        raise InputError(
            f"lateral_activation = {config.lateral_activation!r} and pooling = {config.pooling!r} need whole feature "
            "maps: a frozen trunk gives pooled ones, for 'none' and 'avg'"
        )


def trunk_key(model: DMSH) -> str:
    """Return the name of what the trunk of ``model`` computes: SHA-256 (hex) over weights and preprocessing."""
    config = model.config
    what = [_FORMAT, torch.__version__, config.backbone, config.image_size, config.mean, config.std]
    digest = hashlib.sha256(json.dumps(what).encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path, shape: tuple[int, int]) -> Taps | None:
    """Return what the file holds, or None if it is not there, or not what it should be."""
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.float32 and found.shape == shape and np.isfinite(found).all() else None
