"""Instance retrieval: each query has partners in the database, and the rank of the first one found counts.

Ranks are those of a search: (Hamming distance, database row) ascending.

- *recall@k*: share of the queries that have a partner among the first k.
- *mean reciprocal rank*: mean over the queries of 1 / rank of the first partner.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from dmsh_serving.codes import Codes
from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import FORMATS

__all__ = ["measure_pairs", "pairs_by_name", "pairs_of_csv"]

Pairs = list[tuple[int, list[int]]]
"""A query's row and the rows of its partners, at least one."""

_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)
_SHOWN = 3


@dataclass(frozen=True)
class Instances:
    """How well codes find partners.

    Attributes:
        queries: those with a partner.
        database: images of the database.
        recall: recall@k by k.
        mean_reciprocal_rank: over all ranks.
    """

    queries: int
    database: int
    recall: dict[int, float]
    mean_reciprocal_rank: float


def pairs_by_name(queries: Sequence[str], database: Sequence[str]) -> Pairs:
    """Return the pairs whose paths are the same but for their endings.

    Raises:
        InputError: there is none.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(database):
        rows.setdefault(_without_ending(name), []).append(row)
    pairs = [(row, rows[name]) for row, each in enumerate(queries) if (name := _without_ending(each)) in rows]
    if not pairs:
        raise InputError(
            f"no query has the name of a database image: queries are {_some(queries)}; the database {_some(database)}"
        )
    return pairs


def pairs_of_csv(path: Path, queries: Sequence[str], database: Sequence[str]) -> Pairs:
    """Return the pairs of a CSV file: a line holds a query's path and a partner's, below their folders.

    Raises:
        InputError: missing, no text, a line of other columns, a path that is not among the images, or no line.
    """
    row_of_query, row_of_partner = ({name: row for row, name in enumerate(names)} for names in (queries, database))
    pairs: dict[int, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(csv.reader(file), 1):
                if not line or (number == 1 and line == ["query", "database"]):
                    continue
                if len(line) != 2:
                    raise InputError(f"{path}, line {number}: {len(line)} columns, two are needed: query,database")
                for name, rows, what in ((line[0], row_of_query, "queries"), (line[1], row_of_partner, "database")):
                    if name not in rows:
                        raise InputError(f"{path}, line {number}: {name} is not among the {what}")
                pairs.setdefault(row_of_query[line[0]], []).append(row_of_partner[line[1]])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    if not pairs:
        raise InputError(f"{path} holds no pairs: a line is query,database")
    return list(pairs.items())


def measure_pairs(
    query_codes: Codes, database_codes: Codes, pairs: Pairs, *, ks: Sequence[int] = (1, 10, 100)
) -> Instances:
    """Return recall and mean reciprocal rank.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed; row order breaks ties.
        pairs: rows of both; queries without a pair do not count.
        ks: numbers of ranks, each at least 1.

    Raises:
        InputError: a k below 1, or codes that do not fit each other.
    """
    if min(ks) < 1:
        raise InputError(f"topk = {min(ks)} must be at least 1")
    if query_codes.shape[1:] != database_codes.shape[1:]:
        raise InputError(f"queries have {query_codes.shape[1]} bytes per code, the database {database_codes.shape[1]}")
    ranks = np.array([_rank(query_codes[query], database_codes, partners) for query, partners in pairs])
    return Instances(
        queries=len(pairs),
        database=len(database_codes),
        recall={k: float((ranks <= k).mean()) for k in ks},
        mean_reciprocal_rank=float((1 / ranks).mean()),
    )


def _rank(query: npt.NDArray[np.uint8], database_codes: Codes, partners: list[int]) -> int:
    distances = _ONES[query ^ database_codes].sum(axis=1, dtype=np.int64)
    nearest, row = min((int(distances[partner]), partner) for partner in partners)
    return 1 + int((distances < nearest).sum()) + int((distances[:row] == nearest).sum())


def _without_ending(name: str) -> str:
    """Return a name without the ending of an image format: what follows another dot, as a number, is a part of it."""
    path = PurePosixPath(name)
    is_ending = Image.registered_extensions().get(path.suffix.lower()) in FORMATS
    return path.with_suffix("").as_posix() if is_ending else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
