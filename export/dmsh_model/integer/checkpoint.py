"""Checkpoints of the integer network: ``config.json`` holds the graph, ``model.safetensors`` the integers."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from dmsh_model.checkpoint import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    INTEGER,
    WEIGHTS_FILE,
    check_target,
    read_header,
    write_folder,
)
from dmsh_model.config import HashConfig
from dmsh_model.integer.layers import LAYER_KINDS, Int8, Int32, Layer
from dmsh_model.integer.network import IntegerNetwork
from dmsh_model.integer.reference import IntegerDMSH
from dmsh_serving.errors import InputError

__all__ = ["load", "save"]

_KINDS = {kind.__name__: kind for kind in LAYER_KINDS}
# What the plain (array-free) fields of the layers may be: number of values in the tuple, None for any.
_TUPLES = {"stride": 2, "dilation": 2, "kernel": 2, "padding": 4, "parts": None}


def save(
    model: IntegerDMSH,
    folder: Path,
    *,
    parent: str,
    training: dict[str, Any] | None = None,
    quantisation: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``model`` to the checkpoint ``folder``, whole or not at all.

    ``parent`` is the fingerprint of the float checkpoint it was made from, ``training`` that one's record;
    ``training`` and ``quantisation`` (plain JSON types) are kept beside the config for the record.

    Raises:
        InputError: ``folder`` exists and ``overwrite`` is False, or it is not a checkpoint.
    """
    check_target(folder, overwrite=overwrite, kind=INTEGER)
    graph = []
    tensors = {}
    for index, layer in enumerate(model.network.layers):
        entry: dict[str, Any] = {"kind": type(layer).__name__}
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(value, np.ndarray):
                tensors[f"{index}.{field.name}"] = np.ascontiguousarray(value)
            else:
                entry[field.name] = value
        graph.append(entry)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": INTEGER,
        "fingerprint": model.fingerprint,
        "parent_fingerprint": parent,
        "config": model.config.to_dict(),
        "graph": graph,
        "training": training or {},
        "quantisation": quantisation or {},
    }
    write_folder(folder, header, safetensors.numpy.save(tensors))


def load(path: Path) -> IntegerDMSH:
    """Read an integer checkpoint folder.

    Raises:
        InputError: not one; a malformed graph; missing, extra or misshapen tensors; or integers that are not the ones
            the config's fingerprint names.
    """
    header = read_header(path)
    if header.get("kind") != INTEGER or not path.is_dir():
        raise InputError(f"{path} is not an integer checkpoint: make one with dmsh-export quantize")
    try:
        tensors = _tensors(path / WEIGHTS_FILE)
        graph = header.get("graph")
        if not isinstance(graph, list):
            raise InputError(f"{CONFIG_FILE} has no list 'graph'")
        layers = tuple(_layer(index, entry, tensors) for index, entry in enumerate(graph))
        if tensors:
            raise InputError(f"extra tensors {', '.join(sorted(tensors)[:5])}")
        model = IntegerDMSH(HashConfig.from_dict(header["config"]), IntegerNetwork(layers))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if header.get("fingerprint") != model.fingerprint:
        stated = str(header.get("fingerprint"))[:12]
        raise InputError(
            f"{path}: its integers give the fingerprint {model.fingerprint[:12]}, its config says {stated}"
        )
    return model


def _tensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    if not file.is_file():
        raise InputError(f"{file.name} is missing")
    try:
        # load_file maps the file; a copy in memory cannot change under a reader.
        return safetensors.numpy.load(file.read_bytes())
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that NumPy has not
        raise InputError(f"{file.name} is damaged: {error}") from error


def _layer(index: int, entry: Any, tensors: dict[str, npt.NDArray[Any]]) -> Layer:
    """Build a layer, taking its arrays out of ``tensors``."""
    kind = _KINDS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if kind is None:
        raise InputError(f"layer {index} of the graph is of no known kind: {', '.join(_KINDS)}")
    expected = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {name: value for name, value in entry.items() if name != "kind"}
    for name, field in expected.items():
        if _is_array(field) and name not in values and f"{index}.{name}" in tensors:
            values[name] = tensors.pop(f"{index}.{name}")
    if set(values) != set(expected):
        wrong = ", ".join(sorted(set(values) ^ set(expected)))
        raise InputError(f"layer {index} ({kind.__name__}): missing or unknown {wrong}")
    for name, field in expected.items():
        if not _is_array(field):
            values[name] = _checked(f"layer {index} ({kind.__name__})", name, values[name], field.type)
        elif not isinstance(values[name], np.ndarray):
            raise InputError(f"layer {index} ({kind.__name__}): {name} is no tensor of {WEIGHTS_FILE}")
    layer: Layer = kind(**values)
    return layer


def _is_array(field: "dataclasses.Field[Any]") -> bool:
    return field.type in (Int8, Int32)


def _checked(where: str, name: str, value: Any, annotation: Any) -> Any:
    if name in _TUPLES:
        count = _TUPLES[name]
        if not isinstance(value, list) or count not in (None, len(value)) or not all(map(_is_whole, value)):
            raise InputError(f"{where}: {name} = {value} must be a list of {count or 'some'} whole numbers")
        return tuple(value)
    if (annotation is str and isinstance(value, str)) or (annotation is int and _is_whole(value)):
        return value
    raise InputError(f"{where}: {name} = {value!r} is of a wrong type")


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**31
