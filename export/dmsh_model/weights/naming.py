"""Whose names a file's tensors have: one explicit table per naming, read into timm's names.

timm's own names need no table. torchvision's ResNet, ResNeXt, wide ResNet, VGG and DenseNet share them. Networks of
inverted residuals do not: each source below names their stem, head and blocks its own way. Blocks are matched in
order, their parts by the table; shapes are checked afterwards, by :mod:`dmsh_model.weights.fill`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Interpolation

__all__ = ["Naming", "Tensors", "in_timm_names"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Naming:
    """One source's names for one family of networks, and how that source prepares images.

    Attributes:
        source: the package that names its tensors so.
        networks: a regular expression of timm's names of the family.
        outside: layers outside of the blocks: the source's name -> timm's.
        block: a regular expression of a name in a block; its numbers order the blocks, its last group is the layer.
        plain: layers of a block without expansion: the source's name -> timm's.
        expanded: layers of a block with expansion.
        mean: of the images, in units of 0..1 RGB.
        std: of the images, in the same units.
        interpolation: the filter that they were resampled with.
    """

    source: str
    networks: str
    outside: dict[str, str]
    block: str
    plain: dict[str, str]
    expanded: dict[str, str]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"


EFFICIENTNET_LITE_PYTORCH: Final = Naming(
    "efficientnet_lite_pytorch",
    r"tf_efficientnet_lite[0-4]",
    outside={"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"},
    block=r"_blocks\.(\d+)\.(.+)",
    plain={"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    expanded={
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
)  # fmt: skip
TORCHVISION_EFFICIENTNET: Final = Naming(
    "torchvision",
    r"efficientnet_b[0-4]",  # b5 to b7 have another epsilon in their BN there than timm's have
    outside={
        "features.0.0": "conv_stem", "features.0.1": "bn1",
        "features.8.0": "conv_head", "features.8.1": "bn2", "classifier.1": "classifier",
    },
    block=r"features\.(\d+)\.(\d+)\.block\.(.+)",
    plain={
        "0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand",
        "2.0": "conv_pw", "2.1": "bn2",
    },
    expanded={
        "0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2",
        "2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand", "3.0": "conv_pwl", "3.1": "bn3",
    },
)  # fmt: skip
TORCHVISION_MOBILENET_V2: Final = Naming(
    "torchvision",
    r"mobilenetv2_100",
    outside={
        "features.0.0": "conv_stem", "features.0.1": "bn1",
        "features.18.0": "conv_head", "features.18.1": "bn2", "classifier.1": "classifier",
    },
    block=r"features\.(\d+)\.conv\.(.+)",
    plain={"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"},
    expanded={"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"},
)  # fmt: skip
NAMINGS: Final = (EFFICIENTNET_LITE_PYTORCH, TORCHVISION_EFFICIENTNET, TORCHVISION_MOBILENET_V2)

_WRAPPER = "module."  # what DataParallel puts before every name


def in_timm_names(tensors: Tensors, backbone: str, network: Iterable[str], where: str) -> tuple[Tensors, Naming | None]:
    """Return ``tensors`` by timm's names, and the naming that they had; None for timm's own.

    Args:
        tensors: of the whole network, or of its trunk.
        backbone: timm's name of the network.
        network: timm's names of all tensors of the network.
        where: what to call the tensors in an error.

    Raises:
        InputError: the names are another network's, in a naming that is known here.
    """
    if tensors and all(name.startswith(_WRAPPER) for name in tensors):
        tensors = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    having = [each for each in NAMINGS if any(re.fullmatch(each.block, _layer(name)) for name in tensors)]
    for naming in having:
        if re.fullmatch(naming.networks, backbone):
            return _renamed(tensors, naming, list(network), where), naming
    if having:
        known = " or ".join(f"{each.source}'s {each.networks}" for each in having)
        raise InputError(f"{where} names its tensors as {known}, the backbone is {backbone}: give the other one")
    return tensors, None


def _renamed(tensors: Tensors, naming: Naming, network: list[str], where: str) -> Tensors:
    numbers = {name: found for name in tensors if (found := _block_and_layer(name, naming))}
    theirs = sorted({block for block, _ in numbers.values()})
    ours = list(dict.fromkeys(start[0] for name in network if (start := re.match(r"blocks\.\d+\.\d+", name))))
    if len(theirs) != len(ours):
        raise InputError(
            f"{where} is of another network, or only a part: it has {len(theirs)} blocks, the backbone {len(ours)}"
        )
    block_of = dict(zip(theirs, ours, strict=True))
    expanded = {name.removesuffix(".conv_pwl.weight") for name in network if name.endswith(".conv_pwl.weight")}
    renamed = {}
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        if name in numbers:
            number, layer = numbers[name]
            block = block_of[number]
            ours_of_layer = (naming.expanded if block in expanded else naming.plain).get(layer)
            renamed[f"{block}.{ours_of_layer}.{kind}" if ours_of_layer else name] = tensor
        else:
            renamed[f"{naming.outside[_layer(name)]}.{kind}" if _layer(name) in naming.outside else name] = tensor
    return renamed


def _block_and_layer(name: str, naming: Naming) -> tuple[tuple[int, ...], str] | None:
    found = re.fullmatch(naming.block, _layer(name))
    if not found:
        return None
    *numbers, layer = found.groups()
    return tuple(map(int, numbers)), layer


def _layer(name: str) -> str:
    """Return a tensor's name without its last part: the layer that it belongs to."""
    return name.rpartition(".")[0]
