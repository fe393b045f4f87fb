"""Configurations of the experiment: one TOML file each, read and checked before anything is trained."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmsh_model.config import IMAGENET_MEAN, IMAGENET_STD, HashConfig, LossWeights
from dmsh_model.training.options import Augmentation, TrainingOptions
from dmsh_serving.errors import InputError

REFERENCE: Final = "dmsh"  # the configuration that the others are compared with
_NOT_OF_A_FILE: Final = (
    "bits",
    "num_classes",
    "loss",
    "mean",
    "std",
    "crop",
    "interpolation",
)  # the run's and the data's
_SECTIONS: Final = ("title", "network", "loss", "training")


@dataclass(frozen=True)
class Configuration:
    """One way to train.

    Attributes:
        name: the file's, without its ending.
        title: for people.
        network: fields of :class:`~dmsh_model.config.HashConfig`, without those that a run or its data decide.
        loss: weights of the losses.
        options: how to train; the seed is the run's.
    """

    name: str
    title: str
    network: dict[str, Any]
    loss: LossWeights
    options: TrainingOptions

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return int(self.network.get("image_size", HashConfig.image_size))

    def hash_config(self, bits: int, classes: int, *, digits: bool) -> HashConfig:
        """Return the network's config for so many bits and classes; ``digits`` are normalised as MNIST is."""
        from dmsh_model.data.load import MNIST_5K_MEAN, MNIST_5K_STD

        return HashConfig(
            **self.network,
            bits=bits,
            num_classes=classes if self.loss.classification else 0,
            mean=MNIST_5K_MEAN if digits else IMAGENET_MEAN,
            std=MNIST_5K_STD if digits else IMAGENET_STD,
            loss=self.loss,
        )


@dataclass(frozen=True)
class DataChoice:
    """A data set of the experiment: what :func:`dmsh_model.data.load.load_labelled` takes, and how it is split."""

    name: str
    source: str
    queries_per_class: int
    train_per_class: int


@dataclass(frozen=True)
class Experiment:
    """Every configuration on every data set, with every number of bits and every seed."""

    configurations: tuple[Configuration, ...]
    data: tuple[DataChoice, ...]
    bits: tuple[int, ...]
    seeds: tuple[int, ...]


def read_configuration(path: Path) -> Configuration:
    """Read one file.

    Raises:
        InputError: missing, not TOML, an unknown section or field, or a value out of range; says where.
    """
    values = _read_toml(path)
    if unknown := sorted(set(values) - set(_SECTIONS)):
        raise InputError(f"{path}: unknown sections {', '.join(unknown)}; known are {', '.join(_SECTIONS)}")
    try:
        network = dict(values.get("network", {}))
        if refused := sorted(set(network) & set(_NOT_OF_A_FILE)):
            raise InputError(f"network: {', '.join(refused)} are a run's, not a configuration's")
        if "taps" in network:
            network["taps"] = tuple(network["taps"])
        HashConfig(**_typed("network", HashConfig, network))
        training = dict(values.get("training", {}))
        augmentation = Augmentation(**_typed("training.augmentation", Augmentation, training.pop("augmentation", {})))
        return Configuration(
            path.stem,
            str(values.get("title", path.stem)),
            network,
            LossWeights(**_typed("loss", LossWeights, values.get("loss", {}))),
            TrainingOptions(**_typed("training", TrainingOptions, training), augmentation=augmentation),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _typed(section: str, kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` if each is a field of the dataclass ``kind`` and of its default's type, else refuse them."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in defaults:
            raise InputError(f"{section}: unknown field {name}; known are {', '.join(defaults)}")
        default = defaults[name]
        if type(value) is not type(default) and isinstance(default, (bool, int, float, str)):
            whole_for_float = type(default) is float and type(value) is int
            if not whole_for_float:
                raise InputError(f"{section}: {name} = {value!r} must be of the type of {default!r}")
    return values


def read_experiment(path: Path) -> Experiment:
    """Read the file that names configurations, data, bits and seeds; the configurations lie beside it.

    Raises:
        InputError: missing, not TOML, incomplete, or a configuration that cannot be read.
    """
    values = _read_toml(path)
    try:
        experiment = Experiment(
            tuple(read_configuration(path.with_name(f"{name}.toml")) for name in values["configurations"]),
            tuple(DataChoice(name, **fields) for name, fields in values["data"].items()),
            tuple(values["bits"]),
            tuple(values["seeds"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: needs configurations, bits, seeds and [data.NAME] ({error})") from error
    if not (experiment.configurations and experiment.data and experiment.bits and experiment.seeds):
        raise InputError(f"{path}: configurations, data, bits and seeds must name at least one each")
    if REFERENCE not in (each.name for each in experiment.configurations):
        raise InputError(f"{path}: configurations must include {REFERENCE}, which the others are compared with")
    return experiment


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def with_seed(configuration: Configuration, seed: int) -> TrainingOptions:
    """Return the configuration's options with a run's seed."""
    return dataclasses.replace(configuration.options, seed=seed)
