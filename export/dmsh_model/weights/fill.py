"""Weights into a backbone: every tensor of the trunk, or an error that says what is wrong with the pairing."""

from typing import Final

from torch import nn

from dmsh_model.weights.naming import Tensors
from dmsh_serving.errors import InputError

__all__ = ["check_network", "fill"]

# What stands on the trunk, by timm's and torchvision's names: a network without these is whole for us.
_HEADS: Final = ("classifier.", "fc.", "head.", "pre_logits.", "head_fc.", "last_linear.")
_COUNTER: Final = "num_batches_tracked"  # of no use to trained weights, and not in files of before 2018
_SHOWN: Final = 3


def check_network(tensors: Tensors, network: nn.Module, backbone: str, where: str) -> None:
    """Compare names and shapes with the whole network's; the classifier and what only it needs may be missing.

    Args:
        tensors: by timm's names.
        network: with its classifier.
        backbone: its name.
        where: what to call the tensors in an error.

    Raises:
        InputError: tensors of another shape, or that the network does not have.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS) and _COUNTER not in name}
    unknown = [name for name in given if name not in shapes]
    misshapen = [
        f"{name} {list(tensor.shape)} instead of {list(shapes[name])}"
        for name, tensor in given.items()
        if name in shapes and tuple(tensor.shape) != shapes[name]
    ]
    if len(unknown) == len(given):
        raise InputError(
            f"{where} names its tensors as neither timm, torchvision nor efficientnet_lite_pytorch do for {backbone}: "
            + _some(unknown)
        )
    if misshapen:
        raise InputError(f"{where} holds another network's weights than {backbone}'s: " + _some(misshapen))
    if unknown:
        raise InputError(f"{where} holds another network's weights: {backbone} has no " + _some(unknown))


def fill(backbone: nn.Module, tensors: Tensors, where: str) -> None:
    """Copy ``tensors`` (timm's names) into the trunk ``backbone``, on whatever device it is.

    Raises:
        InputError: a tensor of the trunk is missing or has another shape; each is named.
    """
    own = backbone.state_dict()
    # timm's feature wrappers flatten a dot of some module paths: features.0.weight -> features_0.weight.
    given = {name.replace(".", "_"): tensor for name, tensor in tensors.items()}
    chosen = {name: given.get(name.replace(".", "_")) for name in own}
    missing = [name for name, tensor in chosen.items() if tensor is None and not name.endswith(_COUNTER)]
    if missing:
        raise InputError(
            f"{where} is a part of the weights only: it lacks {len(missing)} of {len(own)}: {_some(missing)}"
        )
    misshapen = [name for name, tensor in chosen.items() if tensor is not None and tensor.shape != own[name].shape]
    if misshapen:
        raise InputError(f"{where} holds another network's weights, of other shapes: {_some(misshapen)}")
    backbone.load_state_dict({name: own[name] if tensor is None else tensor for name, tensor in chosen.items()})


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
