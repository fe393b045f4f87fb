"""A gallery folder or a Parquet file -> a published version in ClickHouse; streamed, resumable, checked first."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from dmsh_serving.checks import check_model
from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.catalogue import Published, Segment, history, publish, sweep, synced
from dmsh_serving.clickhouse.connection import PATIENT_SECONDS, Connection
from dmsh_serving.clickhouse.lease import Lease
from dmsh_serving.clickhouse.rows import Incoming, Source, numbers_sql
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import live_sql
from dmsh_serving.errors import CheckError, InputError

__all__ = ["MAX_REMOVED", "Progress", "check_rows", "copy_removed", "push"]

MAX_REMOVED: Final = 1 << 20
"""Removed codes that a version may have: each statement looks at them, so there must not be many."""

Progress = Callable[[int, int], None]
"""Called with (codes done, codes in all) after every block."""


def push(
    source: Source, address: Address, *, append: bool = False, on_progress: Progress | None = None
) -> tuple[Published, int]:
    """Make ``source`` the gallery at ``address``, or with ``append`` add it to the gallery that is there.

    What is there already, from an earlier push or from one that was killed, is not sent again. A version is published
    once every segment has the number of rows and the checksum that it should have.

    Returns:
        The version, and the number of codes that were sent.

    Raises:
        InputError: another model's gallery, other metadata columns, an id twice, too many removed codes, or another
            writer at work.
        UnavailableError: ClickHouse does not answer; push again to go on.
        CheckError: what arrived is not what was sent.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection:
        for statement in tables.statements(source.bits, source.kinds):
            connection.run(statement)
        with Lease(tables) as lease:
            versions = history(connection, tables)
            old = versions[0] if versions else None
            if old is not None:
                _check_fits(address, source, old, append)
            done, total, sent = 0, sum(segment.count for segment in source.segments), 0
            synced(connection, tables)  # a replica that is behind would call a block missing that is there
            arrivals = []
            for incoming in source.segments:
                arrival = _Arrival(connection, tables, source, lease)
                for rows, was_sent in arrival.blocks(incoming):
                    done, sent = done + rows, sent + rows * was_sent
                    if on_progress:
                        on_progress(done, total)
                arrivals.append((arrival, incoming))
            synced(connection, tables)
            segments = [arrival.segment(incoming) for arrival, incoming in arrivals]
            base = old if append else None
            kept = () if base is None else base.segments
            removed, removed_count = _remove(connection, tables, source, base)
            new = [segment for segment in segments if segment.name not in {each.name for each in kept}]
            version = Published(
                number=0, version="", content=0, bits=source.bits, fingerprint=source.fingerprint,
                count=sum(each.count for each in (*kept, *new)) - removed_count,
                next_id=0, has_keys=source.has_keys, segments=(*kept, *new), removed=removed,
                removed_count=removed_count, columns=tuple(source.kinds.items()), source=source.name,
            )  # fmt: skip
            if kept or not source.unique:
                _check_unique(connection, tables, version)
            version = _with_next_id(connection, tables, version, source, old)
            lease.check()
            published = publish(connection, tables, version, after=old)
            sweep(connection, tables)
            return published, sent


class _Arrival:
    """Sends the blocks of a segment that are not there, and checks what is there then."""

    def __init__(self, connection: Connection, tables: Tables, source: Source, lease: Lease) -> None:
        self._connection, self._tables, self._source, self._lease = connection, tables, source, lease
        self._checksum = 0

    def blocks(self, incoming: Incoming) -> Iterator[tuple[int, bool]]:
        """Yield per block its number of rows, and whether it was sent."""
        there = self._there(incoming.name)
        for number, block in enumerate(incoming.blocks):
            own = block.checksum(self._source.kinds)
            self._checksum = (self._checksum + own) % 2**64
            found = there.pop(number, None)
            if found != (len(block.ids), own):
                self._lease.check()  # a writer that slept for a minute must not touch what another has published
                if found is not None:
                    self._delete(incoming.name, number)
                # A block that is sent again is no repetition to be left out: what was there of it has been deleted.
                own_token = secrets.token_hex(16)
                table = block.table(incoming.name, number)
                self._connection.insert(self._tables.codes, table, insert_deduplication_token=own_token)
            yield len(block.ids), found != (len(block.ids), own)
        for number in there:
            self._lease.check()
            self._delete(incoming.name, number)

    def segment(self, incoming: Incoming) -> Segment:
        """Return the segment once it is there whole."""
        segment = Segment(incoming.name, incoming.count, self._checksum)
        check_rows(self._connection, self._tables, segment, numbers_sql(self._source.bits, self._source.kinds))
        return segment

    def _there(self, segment: int) -> dict[int, tuple[int, int]]:
        columns = self._connection.columns(
            f"SELECT block, count(), {numbers_sql(self._source.bits, self._source.kinds)} FROM {self._tables.codes} "
            f"WHERE segment = {segment} GROUP BY block"
        )
        return {block: (count, checksum) for block, count, checksum in zip(*columns, strict=True)}

    def _delete(self, segment: int, block: int) -> None:
        self._connection.run(
            f"ALTER TABLE {self._tables.local_codes}{self._tables.on_cluster} DELETE "
            f"WHERE segment = {segment} AND block = {block}",
            mutations_sync=2,
        )


def check_rows(connection: Connection, tables: Tables, segment: Segment, numbers: str) -> None:
    """Raise :class:`CheckError` unless a segment's rows are those that were sent."""
    count, checksum = (
        column[0]
        for column in connection.columns(
            f"SELECT count(), {numbers} FROM {tables.codes} WHERE segment = {segment.name}"
        )
    )
    if (count, checksum) != (segment.count, segment.checksum):
        raise CheckError(
            f"{tables.address}: {count:,} of {segment.count:,} rows are there"
            + ("" if count != segment.count else ", and their checksum differs")
            + ": push again, which sends what is missing"
        )


def _check_fits(address: Address, source: Source, old: Published, append: bool) -> None:
    check_model(address, old, bits=source.bits, fingerprint=source.fingerprint, advice="push under another name")
    if dict(old.columns) != dict(source.kinds):
        has = ", ".join(f"{name} {kind}" for name, kind in old.columns) or "none"
        raise InputError(f"{address} has other metadata columns ({has}): give the same, or push under another name")
    if append and old.count and old.has_keys != source.has_keys:
        raise InputError(
            f"{address} has {'' if old.has_keys else 'no '}keys: append {'with' if old.has_keys else 'without'} keys"
        )


def _remove(connection: Connection, tables: Tables, source: Source, base: Published | None) -> tuple[int, int]:
    """Write the batch of what the source, and the version it is added to, have removed; return its name and rows."""
    import pyarrow as pa

    before, count = (0, 0) if base is None else (base.removed, base.removed_count)
    known = _removed_by_segment(connection, tables, before)
    removed = {each.name: np.setdiff1d(each.removed, known.get(each.name, [])) for each in source.segments}
    segments = np.concatenate(
        [np.empty(0, np.uint64), *(np.full(len(ids), name, np.uint64) for name, ids in removed.items())]
    )
    if not len(segments):
        return before, count
    count += len(segments)
    if count > MAX_REMOVED:
        raise InputError(
            f"{source.name} would make {count:,} removed codes, a version in ClickHouse has at most {MAX_REMOVED:,}: "
            "run dmsh-serve gallery compact first"
        )
    batch = secrets.randbits(63) or 1
    ids = np.concatenate([ids.astype(np.int64) for ids in removed.values()])
    columns = {"batch": np.full(len(ids), batch, np.uint64), "segment": segments, "id": ids}
    connection.insert(tables.removed, pa.table({name: pa.array(column) for name, column in columns.items()}))
    copy_removed(connection, tables, before, batch)
    synced(connection, tables)
    found = connection.value(f"SELECT count() FROM {tables.removed} WHERE batch = {batch}")
    if found != count:
        raise CheckError(f"{tables.address}: {found:,} of {count:,} removed ids arrived: push again")
    return batch, count


def _removed_by_segment(connection: Connection, tables: Tables, batch: int) -> dict[int, list[int]]:
    if not batch:
        return {}
    columns = connection.columns(
        f"SELECT segment, groupArray(id) FROM {tables.removed} WHERE batch = {batch} GROUP BY segment"
    )
    return dict(zip(*columns, strict=True))


def copy_removed(connection: Connection, tables: Tables, before: int, batch: int) -> None:
    """Add what the batch ``before`` holds, 0 for none, to another batch."""
    if before:
        connection.run(
            f"INSERT INTO {tables.removed} SELECT {batch}, segment, id FROM {tables.removed} WHERE batch = {before}"
        )


def _check_unique(connection: Connection, tables: Tables, version: Published) -> None:
    columns = connection.columns(
        f"SELECT id FROM {tables.codes} WHERE {live_sql(tables, version)} GROUP BY id HAVING count() > 1 "
        "ORDER BY id LIMIT 5",
        optimize_aggregation_in_order=1,  # rows are ordered by id: no table of all ids in memory
    )
    if columns:
        shown = ", ".join(map(str, columns[0]))
        raise InputError(f"{tables.address} would have ids more than once, such as {shown}: ids are unique")


def _with_next_id(
    connection: Connection, tables: Tables, version: Published, source: Source, old: Published | None
) -> Published:
    highest = connection.value(f"SELECT max(id) FROM {tables.codes} WHERE _partition_id IN ({version.partitions})")
    known = max(source.next_id, 0 if old is None else old.next_id)
    return replace(version, next_id=max(known, int(highest) + 1 if version.segments else 0))
