"""Data sets as list files: the format that deep-hashing codebases share for NUS-WIDE-21, MS-COCO and ImageNet-100.

Three files in one folder: ``database.txt``, ``test.txt`` (the queries) and ``train.txt``. Each line holds the path of
an image, relative to a root folder, and its labels: either one column of 0 or 1 per label, or one column with the
number of its class. Columns are separated by blanks. Images in both database and training set appear in both files.
"""

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_model.data import image_cache
from dmsh_model.data.labelled import MOST_CLASSES, Indices, LabelledImages, Split
from dmsh_model.data.labels import Labels
from dmsh_serving.errors import InputError
from dmsh_serving.images.framing import Framing
from dmsh_serving.images.read import iter_listed_batches

__all__ = ["KNOWN", "KnownLists", "load_lists"]

PARTS = ("database", "test", "train")
_BATCH = 64
_SHOWN = 3


@dataclass(frozen=True)
class KnownLists:
    """A public data set of this format: its number of labels, and where a person gets it."""

    classes: int
    hint: str


_LISTS = (
    "and the lists database.txt, test.txt and train.txt, which HashNet (github.com/thuml/HashNet) and its successors "
    "publish"
)
KNOWN = {
    "nuswide21": KnownLists(21, f"get the images of NUS-WIDE (National University of Singapore) {_LISTS}"),
    "coco": KnownLists(80, f"get train2014 and val2014 of MS-COCO from cocodataset.org {_LISTS}"),
    "imagenet100": KnownLists(100, f"get the images of ILSVRC 2012 from image-net.org {_LISTS}"),
}


@dataclass(frozen=True)
class ListedImages:
    """One list file: paths (relative, cleaned) and labels, (N,) int64 or (N, C) uint8."""

    names: list[str]
    labels: Labels


def read_list(path: Path, root: Path) -> ListedImages:
    """Read one list file.

    Raises:
        InputError: missing or empty, a line without labels or with another number of columns, a column that is no
            label, a row without any label, or a path that leads out of ``root``; each with its line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no list of images: {error}") from error
    names, rows, problems = [], [], []
    width = None
    for number, line in enumerate(lines, 1):
        name, *columns = line.split() or [""]
        if not name:
            continue
        width = len(columns) if width is None else width
        inside = _inside(name, root)
        problem = _problem(columns, width) if inside else f"{name} leads out of {root}"
        if problem or inside is None:
            problems.append(f"line {number}: {problem}")
            continue
        names.append(inside)
        rows.append("".join(columns))
    if problems:
        more = "; ..." if problems[_SHOWN:] else ""
        raise InputError(f"{path}: {len(problems)} bad lines: {'; '.join(problems[:_SHOWN])}{more}")
    if not names:
        raise InputError(f"{path} lists no images")
    if width == 1:
        return ListedImages(names, np.array([int(row) for row in rows], np.int64))
    digits = np.frombuffer("".join(rows).encode("ascii"), np.uint8)
    return ListedImages(names, (digits == ord("1")).astype(np.uint8).reshape(len(rows), -1))


def _problem(columns: list[str], width: int) -> str | None:
    if not columns:
        return "a path without labels"
    if len(columns) != width:
        return f"{len(columns)} columns of labels, {width} in the first line"
    if width == 1:
        return None if _is_class(columns[0]) else f"{columns[0][:20]} is no number of a class, 0 to {MOST_CLASSES - 1}"
    odd = set(columns) - {"0", "1"}
    if odd:
        return f"{min(odd)} among columns of 0 and 1 (a path must hold no blanks)"
    return None if "1" in columns else "no label at all (leave the image out)"


def _is_class(column: str) -> bool:
    return column.isascii() and column.isdigit() and len(column) < 10 and int(column) < MOST_CLASSES


def _inside(name: str, root: Path) -> str | None:
    """Return the path relative to ``root``, or None where it leads out of it."""
    if posixpath.isabs(name):
        if not Path(name).is_relative_to(root.absolute()):
            return None
        name = Path(name).relative_to(root.absolute()).as_posix()
    clean = posixpath.normpath(name)
    return None if clean == ".." or clean.startswith("../") else clean


def load_lists(
    kind: str,
    folder: Path,
    root: Path,
    image_size: int,
    framing: Framing = Framing(),
    *,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> LabelledImages:
    """Read a data set of list files, with the split that they are.

    Args:
        kind: ``lists``, or a key of ``KNOWN``.
        folder: holds the three list files.
        root: what the paths in them are relative to.
        image_size: side of an image in pixels.
        framing: how pictures become images.
        skip_bad: leave out files that cannot be read, and list them in ``bad``.
        on_progress: called with (files done, files in all).
        cache: see :func:`dmsh_model.data.image_cache.gather`.

    Returns:
        Labels (N, C) multi-hot; (N,) where a column holds numbers of classes, or no image has two labels.

    Raises:
        InputError: files that are not there, as :func:`read_list`, lists that contradict each other, or images that
            cannot be read (see ``skip_bad``).
    """
    _require_files(kind, folder, root)
    lists = {part: read_list(folder / f"{part}.txt", root) for part in PARTS}
    names, labels, rows = _merged(folder, lists)
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if kind in KNOWN and classes != KNOWN[kind].classes:
        raise InputError(f"{folder}: the lists have {classes} labels, {kind} has {KNOWN[kind].classes}")
    if classes < 2:
        raise InputError(f"{folder}: the lists have only one class: training needs at least two")
    if labels.ndim == 2 and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)
    _require_inside(root, names)
    images = image_cache.gather(
        lambda: iter_listed_batches(
            root, names, image_size, _BATCH, framing, skip_bad=skip_bad, on_progress=on_progress
        ),
        len(names),
        image_size,
        key=lambda: image_cache.files_key(root, names, image_size, framing),
        cache=cache,
    )
    image_cache.refuse_bad(root, images, skip_bad)
    if images.bad:
        labels, rows = _kept(names, images.names, labels, rows)
    split = Split(rows["test"], rows["database"], rows["train"], given=True)
    for part, indices in rows.items():
        if not len(indices):
            raise InputError(f"{folder / part}.txt: none of its images can be read")
    return LabelledImages(
        folder.resolve().name if kind == "lists" else kind,
        images.images,
        labels,
        images.names,
        [str(label) for label in range(classes)],
        images.bad,
        split,
    )


def _require_files(kind: str, folder: Path, root: Path) -> None:
    missing = [str(folder / f"{part}.txt") for part in PARTS if not (folder / f"{part}.txt").is_file()]
    if not root.is_dir():
        missing.append(f"the folder {root}")
    if missing:
        hint = KNOWN[kind].hint if kind in KNOWN else "each line of a list holds the path of an image and its labels"
        raise InputError(
            f"{kind}: {', '.join(missing)} not there: {hint}; then give {kind}:LISTS:ROOT, the folder of the lists and "
            "the one that their paths are relative to"
        )


def _merged(folder: Path, lists: dict[str, ListedImages]) -> tuple[list[str], Labels, dict[str, Indices]]:
    """Return every image once, their labels, and the rows of each list: the database first, in its own order."""
    shapes = {part: listed.labels.shape[1:] for part, listed in lists.items()}
    if len(set(shapes.values())) > 1:
        widths = ", ".join(f"{part}.txt {shape[0] if shape else 1}" for part, shape in shapes.items())
        raise InputError(f"{folder}: the lists differ in their columns of labels: {widths}")
    row_of: dict[str, int] = {}
    labels: list[npt.NDArray[Any]] = []
    rows: dict[str, Indices] = {}
    for part, listed in lists.items():
        numbers = []
        for name, label in zip(listed.names, listed.labels, strict=True):
            row = row_of.setdefault(name, len(labels))
            if row == len(labels):
                labels.append(label)
            elif not np.array_equal(labels[row], label):
                raise InputError(f"{folder}: {name} has other labels in {part}.txt than before")
            numbers.append(row)
        rows[part] = np.array(numbers, np.int64)
    for part in ("database", "test"):
        values, counts = np.unique(rows[part], return_counts=True)
        if (counts > 1).any():
            raise InputError(f"{folder / part}.txt: {list(row_of)[values[counts > 1][0]]} is listed more than once")
    for part in ("database", "train"):
        shared = np.intersect1d(rows["test"], rows[part])
        if len(shared):
            raise InputError(
                f"{folder}: {len(shared)} queries of test.txt are in {part}.txt too, the first is "
                f"{list(row_of)[shared[0]]}"
            )
    every = np.array(labels)
    return list(row_of), every.astype(np.uint8) if shapes["database"] else every.astype(np.int64), rows


def _require_inside(root: Path, names: list[str]) -> None:
    """Refuse a link that leads out of ``root``."""
    top = os.path.realpath(root)
    real_folders: dict[str, str] = {}
    for name in names:
        folder = posixpath.dirname(name)
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(root / folder)
        path = Path(real_folders[folder], posixpath.basename(name))
        if not (path.resolve() if path.is_symlink() else path).is_relative_to(top):
            raise InputError(f"{name} is, or lies behind, a link out of {root}")


def _kept(
    names: list[str], kept: list[str], labels: Labels, rows: dict[str, Indices]
) -> tuple[Labels, dict[str, Indices]]:
    """Return labels and rows of the images that could be read."""
    readable = set(kept)
    is_kept = np.array([name in readable for name in names])
    new_row = np.cumsum(is_kept) - 1
    return labels[is_kept], {part: new_row[indices[is_kept[indices]]] for part, indices in rows.items()}
