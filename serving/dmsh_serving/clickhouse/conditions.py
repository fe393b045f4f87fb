"""Conditions on metadata columns, as SQL that cannot hold anything else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dmsh_serving.clickhouse.catalogue import quoted
from dmsh_serving.clickhouse.schema import KINDS
from dmsh_serving.errors import InputError

__all__ = ["Condition", "conditions_sql"]

Value = str | int | float
_COMPARED: Final = ("=", "!=", "<", "<=", ">", ">=")
_IN: Final = "in"


@dataclass(frozen=True)
class Condition:
    """One condition: ``Condition("price", "<", 10)``, or ``Condition("colour", "in", ["red", "blue"])``.

    Attributes:
        column: a metadata column of the gallery.
        operator: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` or ``in``.
        value: of the column's type; for ``in`` a sequence of such values.
    """

    column: str
    operator: str
    value: Value | Sequence[Value]


def conditions_sql(conditions: Sequence[Condition], columns: Mapping[str, str]) -> str:
    """Return `` AND ...`` for each condition.

    Args:
        conditions: all of which must hold.
        columns: type in ClickHouse of each metadata column, by name.

    Raises:
        InputError: a column that is not there, an unknown operator, or a value of another type.
    """
    return "".join(f" AND {_sql(condition, columns)}" for condition in conditions)


def _sql(condition: Condition, columns: Mapping[str, str]) -> str:
    if condition.column not in columns:
        has = ", ".join(columns) or "none"
        raise InputError(f"the gallery has no metadata column {condition.column!r}: it has {has}")
    kind = columns[condition.column]
    name, value = f"m_{condition.column}", condition.value
    if condition.operator == _IN:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise InputError(f"{condition.column} in {value!r}: give a list of one value at least")
        values = [_literal(each, kind, condition) for each in value]
        if "0.0" in values or "-0.0" in values:  # IN compares the bits of a float, and these are one number
            values += ["0.0", "-0.0"]
        return f"{name} IN ({', '.join(values)})"
    if condition.operator not in _COMPARED:
        allowed = " ".join((*_COMPARED, _IN))
        raise InputError(f"{condition.column} {condition.operator!r}: an operator is one of {allowed}")
    return f"{name} {condition.operator} {_literal(value, kind, condition)}"


def _literal(value: object, kind: str, condition: Condition) -> str:
    wanted = KINDS[kind]
    fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if isinstance(value, bool) or not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{condition.column} is a column of {kind}, {value!r} is no value of it")
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{condition.column}: {value} is too large for Int64")
    return repr(float(value)) if kind == "Float64" and isinstance(value, int | float) else str(value)
