"""The state of an unfinished training: a file beside the checkpoint it will become, written after every epoch."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmsh_model.checkpoint import read_torch_file
from dmsh_serving.errors import InputError
from dmsh_serving.files import write_atomically

__all__ = ["FORMAT", "FORMAT_VERSION", "TrainingState", "read_state", "state_path", "write_state"]

FORMAT = "dmsh-training-state"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next epoch depends on; its random numbers depend on seed and epoch alone.

    Attributes:
        identity: config, options and SHA-256 of the data: what must be the same to go on.
        epochs_done: number of finished epochs.
        model: the network's state dict.
        optimiser: the optimiser's state dict.
        best: the best epoch so far, of a training that looks for it: see :mod:`dmsh_model.training.early_stopping`.
    """

    identity: dict[str, Any]
    epochs_done: int
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    best: dict[str, Any] | None = None


def state_path(checkpoint: Path) -> Path:
    """Return where the state of the training of ``checkpoint`` is kept."""
    return checkpoint.with_name(checkpoint.name + ".training-state.pt")


def write_state(path: Path, state: TrainingState) -> None:
    """Write ``state``, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity": json.dumps(state.identity),
            "epochs_done": state.epochs_done,
            "model": state.model,
            "optimiser": state.optimiser,
            "best": state.best,
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def read_state(path: Path, identity: dict[str, Any]) -> TrainingState:
    """Read the state of a training of the same ``identity``.

    Raises:
        InputError: no state there, not a state, or that of another training; each differing field is named.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: there is no unfinished training to resume")
    raw = read_torch_file(path)
    if not isinstance(raw, dict) or (raw.get("format"), raw.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise InputError(f"{path} is not a {FORMAT} of version {FORMAT_VERSION}: remove it and train anew")
    try:
        state = TrainingState(
            json.loads(raw["identity"]), int(raw["epochs_done"]), dict(raw["model"]), dict(raw["optimiser"]),
            raw.get("best"),
        )  # fmt: skip
        before = _flat(state.identity)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error!r}): remove it and train anew") from error
    now = _flat(json.loads(json.dumps(identity)))
    differing = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise InputError(f"{path} is of another training and cannot be resumed: " + "; ".join(differing))
    return state


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
