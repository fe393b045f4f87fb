"""Deterministic splits into queries, database and training set."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmsh_model.data.labelled import Indices, LabelledImages, Split
from dmsh_serving.errors import InputError

__all__ = ["SplitOptions", "split_images", "split_record"]


@dataclass(frozen=True)
class SplitOptions:
    """How images are split.

    Attributes:
        queries_per_class: queries drawn from every class.
        train_per_class: most training images of every class; None takes the whole database.
        seed: random seed for the drawing.
        train_in_database: whether training images are also in the database. Both are in use, and mAP differs.
    """

    queries_per_class: int = 50
    train_per_class: int | None = 200
    seed: int = 0
    train_in_database: bool = True

    def __post_init__(self) -> None:
        """Refuse counts below 1 and a seed out of range."""
        for name, least, most in (
            ("queries_per_class", 1, 2**31),
            ("train_per_class", 1, 2**31),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if value is None and name == "train_per_class":
                continue
            if not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"{name} = {value} must be a whole number from {least} to {most}")
        if self.train_in_database not in (True, False):
            raise InputError(f"train_in_database = {self.train_in_database} must be true or false")
        if self.train_per_class is None and not self.train_in_database:
            raise InputError("train_per_class = None takes the whole database, train_in_database = False none of it")


def split_images(data: LabelledImages, options: SplitOptions) -> Split:
    """Return the split that comes with ``data``, or else draw one, every class alike.

    First queries, then ``train_per_class`` of the rest for training; the database is the rest with or without these.
    An image of several labels counts for the first class that draws it; see ``_drawn``.

    Each part is shuffled: a database sorted by class would order ties of the distance by class.

    Raises:
        InputError: a class with too few images, each named.
    """
    if data.given_split is not None:
        return data.given_split
    # RandomState's stream never changes between NumPy releases (NEP 19); a Generator's may, and with it the split.
    random = np.random.RandomState(options.seed)
    parts = _drawn(data, options, random) if data.labels.ndim == 2 else _drawn_by_class(data, options, random)
    query, database, train = (random.permutation(part).astype(np.int64) for part in parts)
    return Split(query, database, train)


def _drawn_by_class(data: LabelledImages, options: SplitOptions, random: np.random.RandomState) -> tuple[Indices, ...]:
    """Draw queries, database and training images of one class after the other."""
    query, database, train = [], [], []
    small = []
    reserved = options.queries_per_class
    if not options.train_in_database:
        reserved += options.train_per_class or 0
    for label, name in enumerate(data.class_names):
        members = random.permutation(np.flatnonzero(data.labels == label))
        if len(members) <= reserved:
            small.append(f"{name} ({len(members)})")
            continue
        rest = members[options.queries_per_class :]
        query.append(members[: options.queries_per_class])
        database.append(members[reserved:])
        train.append(rest[: options.train_per_class])
    _refuse_small(data, small, reserved)
    return tuple(np.concatenate(part) for part in (query, database, train))


def _drawn(data: LabelledImages, options: SplitOptions, random: np.random.RandomState) -> tuple[Indices, ...]:
    """Draw from every label's images in turn those that no label before it has drawn: queries of all, then training.

    So the counts are exact where a label has enough images of its own; an image is never drawn twice.
    """
    order = random.permutation(len(data.labels))
    free = np.ones(len(data.labels), bool)

    def draw(count: int | None, least: int) -> Indices:
        drawn, small = [np.empty(0, np.int64)], []
        for label, name in enumerate(data.class_names):
            members = order[(data.labels[order, label] > 0) & free[order]][:count]
            if len(members) < least:
                small.append(f"{name} ({len(members)} not drawn yet)")
            free[members] = False
            drawn.append(members)
        _refuse_small(data, small, least)
        return np.concatenate(drawn)

    query = draw(options.queries_per_class, options.queries_per_class)
    rest = np.flatnonzero(free)
    train = draw(options.train_per_class, 0)
    return query, rest if options.train_in_database else np.flatnonzero(free), train


def _refuse_small(data: LabelledImages, small: list[str], reserved: int) -> None:
    if small:
        lone = any(each.endswith("(1)") for each in small)
        advice = "lower --queries-per-class" + ("; leave out classes of one image, which has nothing to find" * lone)
        raise InputError(
            f"{data.source}: {len(small)} classes have no more than {reserved} images, all of which would be drawn "
            f"({advice}): {', '.join(small[:5])}" + (" ..." if small[5:] else "")
        )


def split_record(options: SplitOptions, split: Split) -> dict[str, Any]:
    """Return what a checkpoint keeps of its split, in plain JSON types; of a given one no options, as none applied."""
    sizes = {"queries": len(split.query), "database": len(split.database), "train": len(split.train)}
    how = {"given": True} if split.given else dataclasses.asdict(options)
    return {**how, **sizes, "sha256": split.sha256}
