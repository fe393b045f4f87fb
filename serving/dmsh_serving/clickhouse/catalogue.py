"""The published versions of a gallery: rows of the table ``galleries``, of which the highest number serves.

A version names everything that a reader needs: its segments with their counts and checksums, and the batch of removed
codes. It is published by one insert of one row. Two writers that want the same number are told apart by the server: an
insert whose token was seen before is dropped, and the writer whose row is not there has lost.
"""

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.errors import DmshError, InputError

__all__ = [
    "GRACE_SECONDS",
    "Published",
    "Segment",
    "current",
    "history",
    "publish",
    "quoted",
    "superseded_seconds",
    "sweep",
    "synced",
]

GRACE_SECONDS: Final = 600
"""A version that was superseded this long ago has no readers left; see :mod:`dmsh_serving.clickhouse.search`."""
_KEPT: Final = 2
_FIELDS: Final = (
    "number, version, content, bits, fingerprint, count, next_id, has_keys, segments, counts, sums, removed, "
    "removed_count, columns, kinds, source, toUnixTimestamp64Milli(published)"
)


@dataclass(frozen=True)
class Segment:
    """An immutable set of codes, some of which a version may take away.

    Attributes:
        name: the first 8 bytes of the SHA-256 of what it was made from.
        count: its rows.
        checksum: see :func:`dmsh_serving.clickhouse.words.checksum`.
    """

    name: int
    count: int
    checksum: int


@dataclass(frozen=True)
class Published:
    """One version of a gallery.

    Attributes:
        number: counts the versions of the gallery from 1.
        version: the number, and digits that no other version has.
        content: number of the version whose content this one has: its own, or that which a rollback brought back.
        bits, fingerprint: the code space.
        count: codes that can be found.
        next_id: larger than every id that was ever given out.
        has_keys: whether codes have keys.
        segments: what is searched.
        removed: names the batch of removed codes; 0 if there are none.
        removed_count: rows of that batch.
        columns: types in ClickHouse of the metadata columns, by name.
        source: where it came from.
        milliseconds: when it was published, by the server's clock.
    """

    number: int
    version: str
    content: int
    bits: int
    fingerprint: str
    count: int
    next_id: int
    has_keys: bool
    segments: tuple[Segment, ...]
    removed: int
    removed_count: int
    columns: tuple[tuple[str, str], ...]
    source: str
    milliseconds: int = 0

    @property
    def partitions(self) -> str:
        """The partitions that hold the segments, as SQL: to tell them apart by rows would read a column more."""
        return ", ".join(f"'{segment.name}'" for segment in self.segments) or "''"


def current(connection: Connection, tables: Tables) -> Published:
    """Return the version that serves.

    Raises:
        InputError: there is none.
    """
    found = _rows(connection, tables, "ORDER BY number DESC LIMIT 1")
    if not found:
        raise InputError(f"{tables.address} has no published version: make one with dmsh-serve gallery push")
    return found[0]


def history(connection: Connection, tables: Tables) -> list[Published]:
    """Return all versions, the newest first; none if the gallery was never published."""
    exists = connection.value(
        f"SELECT count() FROM system.tables WHERE database = {quoted(tables.address.database)} AND name = 'galleries'"
    )
    return _rows(connection, tables, "ORDER BY number DESC") if exists else []


def superseded_seconds(connection: Connection, tables: Tables, version: Published) -> float:
    """Return for how long ``version`` has been neither the one that serves nor the one before it; 0 if it is.

    Raises:
        InputError: it is no version of the gallery any more.
    """
    (newest,), (milliseconds,) = connection.columns(
        f"SELECT max(number), dateDiff('millisecond', minIf(published, number = {version.number + 1}), now64(3)) "
        f"FROM {tables.galleries} WHERE gallery = {quoted(tables.address.gallery)} AND number >= {version.number}"
    )
    if newest < version.number:
        raise InputError(f"{tables.address} has no version {version.version} any more: push the gallery again")
    return 0.0 if newest <= version.number + 1 else milliseconds / 1000


def publish(connection: Connection, tables: Tables, version: Published, *, after: Published | None) -> Published:
    """Publish ``version`` as the one that follows ``after``, by one insert; return it with its number.

    Raises:
        InputError: another writer has published in the meantime.
    """
    number = 1 if after is None else after.number + 1
    name = f"{number:08d}-{secrets.token_hex(4)}"
    version = replace(version, number=number, version=name, content=version.content or number)
    connection.run(
        f"INSERT INTO {tables.galleries} (gallery, number, version, content, bits, fingerprint, count, next_id, "
        "has_keys, segments, counts, sums, removed, removed_count, columns, kinds, source) VALUES "
        f"({', '.join(map(_literal, _values(tables, version)))})",
        insert_deduplication_token=f"{tables.address.gallery} {number}",
    )
    found = _rows(connection, tables, f"AND number = {number}")
    if [each.version for each in found] != [name]:
        raise InputError(
            f"{tables.address} was changed by another process meanwhile: do it again"
            + (
                ""
                if found
                else f"; if nothing else changes it, rows of {tables.galleries} were deleted by hand, and "
                "the server takes a number that it saw before for a repetition: push under another name"
            )
        )
    return found[0]


def sweep(connection: Connection, tables: Tables) -> None:
    """Drop the segments and batches that no kept version needs; what fails is left to the next change.

    Kept are the last two versions, and those that were superseded less than 10 minutes ago: readers look for a new
    version every half second, and do not answer from one that they could not confirm for a minute.
    """
    with contextlib.suppress(DmshError):  # the change that calls this is published
        _sweep(connection, tables)


def _sweep(connection: Connection, tables: Tables) -> None:
    versions = history(connection, tables)
    now = int(connection.value("SELECT toUnixTimestamp64Milli(now64(3))"))
    kept = versions[:_KEPT]
    kept += [
        version
        for newer, version in pairwise(versions)
        if version not in kept and newer.milliseconds > now - 1000 * GRACE_SECONDS
    ]
    segments = {segment.name for version in kept for segment in version.segments}
    batches = {version.removed for version in kept}
    for table, wanted in ((tables.local_codes, segments), (tables.removed, batches)):
        database, name = table.split(".")
        everywhere = (
            f"clusterAllReplicas({tables.address.cluster}, system.parts)" if tables.on_cluster else "system.parts"
        )
        (found,) = connection.columns(
            f"SELECT DISTINCT partition FROM {everywhere} WHERE active AND database = {quoted(database)} AND "
            f"table = {quoted(name)}"
        ) or [()]
        for partition in {int(each) for each in found} - wanted:
            connection.run(f"ALTER TABLE {table}{tables.on_cluster} DROP PARTITION {partition}")


def synced(connection: Connection, tables: Tables) -> None:
    """Wait until every replica has every row, so that no reader is given a shorter answer."""
    if tables.on_cluster:
        for table in (tables.local_codes, tables.removed):
            connection.run(f"SYSTEM SYNC REPLICA{tables.on_cluster} {table}")


def quoted(text: str) -> str:
    """Return a string as SQL.

    Raises:
        InputError: not text, such as half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!r} is not text: UTF-8 cannot hold it") from None
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _rows(connection: Connection, tables: Tables, which: str) -> list[Published]:
    columns = connection.columns(
        f"SELECT {_FIELDS} FROM {tables.galleries} WHERE gallery = {quoted(tables.address.gallery)} {which}"
    )
    return [_published(*row) for row in zip(*columns, strict=True)]


def _published(
    number: int, version: str, content: int, bits: int, fingerprint: str, count: int, next_id: int, has_keys: int,
    segments: Sequence[int], counts: Sequence[int], sums: Sequence[int], removed: int, removed_count: int,
    columns: Sequence[str], kinds: Sequence[str], source: str, milliseconds: int,
) -> Published:  # fmt: skip
    return Published(
        number, version, content, bits, fingerprint, count, next_id, bool(has_keys),
        tuple(map(Segment, segments, counts, sums)),
        removed, removed_count, tuple(zip(columns, kinds, strict=True)), source, milliseconds,
    )  # fmt: skip


def _values(tables: Tables, version: Published) -> list[Any]:
    segments = version.segments
    return [
        tables.address.gallery, version.number, version.version, version.content, version.bits, version.fingerprint,
        version.count, version.next_id, int(version.has_keys), [each.name for each in segments],
        [each.count for each in segments], [each.checksum for each in segments], version.removed, version.removed_count,
        [name for name, _ in version.columns], [kind for _, kind in version.columns], version.source,
    ]  # fmt: skip


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return quoted(value) if isinstance(value, str) else str(value)
