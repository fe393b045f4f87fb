"""Which keys a gallery has already, and whose codes they are."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dmsh_serving.errors import InputError
from dmsh_serving.gallery.folder import open_current
from dmsh_serving.gallery.part import Ids

__all__ = ["ids_of_keys", "refuse_known_keys"]

_SHOWN = 3


def refuse_known_keys(folder: Path, keys: Iterable[str]) -> None:
    """Raise :class:`InputError` if the gallery has a code under one of ``keys``."""
    contents = open_current(folder).contents()
    known = set(keys).intersection(contents.keys or ())
    if known:
        raise InputError(
            f"{folder} already has {_some(sorted(known))}: gallery sync brings it up to date, --again adds them a "
            "second time"
        )


def ids_of_keys(folder: Path, keys: Iterable[str]) -> Ids:
    """Return the ids (M,) int64, ascending, of all codes under ``keys``.

    Raises:
        InputError: a gallery without keys, or a key that it does not have.
    """
    contents = open_current(folder).contents()
    if contents.keys is None:
        raise InputError(f"{folder} has no keys: remove codes by id")
    wanted = set(keys)
    rows = [row for row, key in enumerate(contents.keys) if key in wanted]
    if unknown := wanted.difference(contents.keys[row] for row in rows):
        raise InputError(f"{folder} has no {_some(sorted(unknown))}: see gallery list")
    return np.asarray(contents.ids[rows])


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"key{'s' if len(keys) > 1 else ''} {', '.join(keys[:_SHOWN])}{more}"
