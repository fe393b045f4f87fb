"""What is known of the images besides their codes: a table beside the gallery, as filters with counts.

A table has a column ``key`` and any others. Every value is a text. A column with few different values is a filter;
the values of the others are only shown with their image.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.web.codes.collection import VERSIONS_HELD, Collection, Places

__all__ = ["MOST_VALUES", "SHOWN_VALUES", "Metadata", "Where"]

MOST_VALUES: Final = 1000  # different ones that a filter may have
SHOWN_VALUES: Final = 50
_KEY: Final = "key"
_NONE: Final = -1  # the row of an image that the table says nothing of, which is one more row of each column

Where = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Column:
    """One column: its different values, and which of them each row has, (R + 1,) int32; the last row has none: -1."""

    name: str
    values: list[str]
    numbers: npt.NDArray[np.int32]

    @property
    def is_filter(self) -> bool:
        """Whether it has few different values."""
        return len(self.values) <= MOST_VALUES and len(self.values) < max(2, len(self.numbers) - 1)


class Metadata:
    """The table at ``path``, Parquet or CSV.

    Raises:
        InputError: no such file, no column ``key``, or a key twice.
        MissingError: it is Parquet, and pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        table = dict(_read(path))
        keys = table.pop(_KEY, None)
        if keys is None:
            raise InputError(f"{path} has no column {_KEY!r}: it says which image a row is about")
        self._rows = {key: row for row, key in enumerate(keys)}
        if len(self._rows) < len(keys):
            twice = next(key for row, key in enumerate(keys) if self._rows[key] != row)
            raise InputError(f"{path} has more than one row with the key {twice!r}")
        self.columns = [_column(name, values) for name, values in table.items()]
        self._matched: dict[str, npt.NDArray[np.int64]] = {}

    def attributes(self, key: str) -> dict[str, str]:
        """Return what the table says of an image."""
        row = self._rows.get(key)
        return {} if row is None else {each.name: each.values[each.numbers[row]] for each in self.columns}

    def places(self, collection: Collection, where: Where) -> Places:
        """Return the places, ascending, of the images that have one of the values of every column of ``where``.

        Raises:
            InputError: no column of that name is a filter.
        """
        masks = self._masks(collection, where)
        return np.flatnonzero(np.logical_and.reduce(list(masks.values())))

    def counts(self, collection: Collection, where: Where) -> list[dict[str, object]]:
        """Return for each filter its values and how many images have each, if the other columns of ``where`` hold.

        The most frequent :data:`SHOWN_VALUES` are given, and those that are asked for; ``others`` counts the rest.
        """
        masks = self._masks(collection, where)
        asked = dict(where)
        rows = self._rows_of(collection)
        found: list[dict[str, object]] = []
        for column in self.columns:
            if not column.is_filter:
                continue
            numbers = column.numbers[rows]
            kept = numbers != _NONE
            for name, mask in masks.items():
                if name != column.name:
                    kept &= mask
            counts = np.bincount(numbers[kept], minlength=len(column.values))
            order = sorted(range(len(counts)), key=lambda each: (-counts[each], column.values[each]))
            chosen = set(asked.get(column.name, ()))
            shown = [each for place, each in enumerate(order) if place < SHOWN_VALUES or column.values[each] in chosen]
            values = [{"value": column.values[each], "count": int(counts[each])} for each in shown]
            found.append({"name": column.name, "values": values, "others": len(order) - len(shown)})
        return found

    def _masks(self, collection: Collection, where: Where) -> dict[str, npt.NDArray[np.bool_]]:
        rows = self._rows_of(collection)
        filters = {column.name: column for column in self.columns if column.is_filter}
        masks = {}
        for name, values in where:
            column = filters.get(name)
            if column is None:
                raise InputError(f"{name!r} is no filter: there are {', '.join(map(repr, filters)) or 'none'}")
            chosen = set(values)  # np.isin would pad each value to the longest one of the request
            wanted = np.array([*(value in chosen for value in column.values), False])
            masks[name] = wanted[column.numbers[rows]]
        return masks

    def _rows_of(self, collection: Collection) -> npt.NDArray[np.int64]:
        """Return the row of the table for each image of a collection, (N,), ``_NONE`` for those without."""
        rows = self._matched.get(collection.version)
        if rows is None:
            found = (self._rows.get(key, _NONE) for key in collection.keys or ())
            rows = np.fromiter(found, np.int64, len(collection)) if collection.keys else np.full(len(collection), _NONE)
            last = [*self._matched.items()][1 - VERSIONS_HELD :]
            self._matched = {**dict(last), collection.version: rows}
        return rows


def _column(name: str, values: list[str]) -> Column:
    number: dict[str, int] = {}
    numbers = np.fromiter((number.setdefault(value, len(number)) for value in values), np.int32, len(values))
    return Column(name, list(number), np.append(numbers, np.int32(_NONE)))


def _read(path: Path) -> Mapping[str, list[str]]:
    if not path.is_file():
        raise InputError(f"--metadata {path} is not a file")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    raise InputError(f"--metadata {path}: give a file that ends with .parquet or .csv")


def _read_csv(path: Path) -> Mapping[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            _check_names(path, names)
            columns: list[list[str]] = [[] for _ in names]
            for row in rows:
                if not row:
                    continue  # an empty line
                if len(row) != len(names):
                    raise InputError(
                        f"{path}, line {rows.line_num}: {len(row)} values, the first line has {len(names)}"
                    )
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not CSV in UTF-8: {error}") from None
    return dict(zip(names, columns, strict=True))


def _read_parquet(path: Path) -> Mapping[str, list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingError("pyarrow is not installed: pip install 'dmsh-toolkit[parquet]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None
    _check_names(path, table.column_names)
    columns = {}
    for name in table.column_names:
        if name == _KEY and str(table[name].type).endswith("binary"):
            raise InputError(f"{path}: column {name!r} holds bytes, which are no keys: write it as strings")
        try:
            columns[name] = [_text(value) for value in table[name].to_pylist()]
        except (ValueError, OverflowError, pyarrow.ArrowException) as error:  # a zone without data, a text of no UTF-8
            raise InputError(
                f"{path}: column {name!r} ({table[name].type}) has no text for each value: {error}; write it as strings"
            ) from None
    return columns


def _check_names(path: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{path} has the column {name!r} twice")
        seen.add(name)


def _text(value: object) -> str:
    return "" if value is None else str(value)
