"""What an integer network's teacher was trained on: its split, and which queries of another one it has seen."""

import dataclasses
from typing import Any

import numpy as np

from dmsh_model.data.labelled import Indices, LabelledImages, Split
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_serving.errors import InputError

__all__ = ["fine_tunings", "seen_queries", "split_as_taught"]

_OPTIONS = frozenset(field.name for field in dataclasses.fields(SplitOptions))


def split_as_taught(
    record: dict[str, Any], queries_per_class: int | None, train_per_class: int | None, seed: int
) -> SplitOptions:
    """Return the options of the split that the teacher was trained on, so that its held-out queries stay held out.

    Args:
        record: what the teacher's checkpoint keeps of its training; may lack the split.
        queries_per_class: replaces the record's.
        train_per_class: replaces the record's.
        seed: used if the record has none.

    Raises:
        InputError: the record is no record.
    """
    asked = {"queries_per_class": queries_per_class, "train_per_class": train_per_class}
    given = {name: value for name, value in asked.items() if value is not None}
    return SplitOptions(**{"seed": seed, **_taught_options(record), **given})


def fine_tunings(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the fine-tunings of a checkpoint, the last one first, from its ``quantisation``.

    Each keeps the one before it as ``earlier``.
    """
    found = []
    tuning = record.get("fine_tuning")
    while isinstance(tuning, dict):
        found.append(tuning)
        tuning = tuning.get("earlier")
    return found


def seen_queries(records: list[dict[str, Any]], data: LabelledImages, data_sha256: str, split: Split) -> int | None:
    """Return how many queries of ``split`` are among the images that the trainings of ``records`` learnt from.

    Args:
        records: what checkpoints keep of their trainings.
        data: the images of ``split``.
        data_sha256: SHA-256 of ``data``.
        split: the split whose queries count.

    Returns:
        None if a record is of other images, or names no split that can be drawn again.

    Raises:
        InputError: a record is no record.
    """
    learnt = [_learnt(record, data, data_sha256, split) for record in records]
    known = [rows for rows in learnt if rows is not None]
    if len(known) < len(learnt):
        return None
    return int(np.isin(split.query, np.concatenate([np.empty(0, np.int64), *known])).sum())


def _learnt(record: dict[str, Any], data: LabelledImages, data_sha256: str, split: Split) -> Indices | None:
    if record.get("data_sha256") != data_sha256:
        return None
    recorded = _taught_split(record).get("sha256")
    if split.sha256 == recorded:
        return split.train
    taught = split_images(data, SplitOptions(**_taught_options(record)))
    return taught.train if taught.sha256 == recorded else None


def _taught_options(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _taught_split(record).items() if name in _OPTIONS}


def _taught_split(record: dict[str, Any]) -> dict[str, Any]:
    taught = record.get("split") or {}
    if not isinstance(taught, dict):
        raise InputError("the float checkpoint's 'training.split' is no object")
    return taught
