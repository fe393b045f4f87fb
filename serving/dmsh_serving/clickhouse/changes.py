"""Change a gallery in ClickHouse, or bring it back: remove, rollback, compact, pull."""

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.catalogue import Published, Segment, current, history, publish, quoted, sweep, synced
from dmsh_serving.clickhouse.connection import PATIENT_SECONDS, Connection
from dmsh_serving.clickhouse.lease import Lease
from dmsh_serving.clickhouse.push import MAX_REMOVED, Progress, check_rows, copy_removed
from dmsh_serving.clickhouse.rows import numbers_sql
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import ids_sql, live_sql
from dmsh_serving.clickhouse.words import codes_of_words, word_names
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.gallery.keys import Keys, joined_keys
from dmsh_serving.gallery.part import Ids, ascending_ids
from dmsh_serving.gallery.snapshot import Contents

__all__ = ["checked", "compact", "pull", "remove", "remove_keys", "rollback"]

_QUERY_BYTES = 1 << 16  # of a statement, beside its list of ids
_SHOWN = 5


def remove(address: Address, ids: Ids) -> Published:
    """Take the codes of ``ids`` (M,) away in a new version; compact the gallery if too many are gone then.

    Raises:
        InputError: an id that is not there (then nothing is removed), or another writer is at work.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection, Lease(tables) as lease:
        return _without(connection, tables, lease, current(connection, tables), ids)


def remove_keys(address: Address, keys: Sequence[str]) -> Published:
    """Take all codes under ``keys`` away in a new version; compact the gallery if too many are gone then.

    Raises:
        InputError: a gallery without keys, a key that it does not have, or another writer is at work.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection, Lease(tables) as lease:
        old = current(connection, tables)
        return _without(connection, tables, lease, old, _ids_of_keys(connection, tables, old, keys))


def _without(connection: Connection, tables: Tables, lease: Lease, old: Published, ids: Ids) -> Published:
    wanted = ascending_ids(np.sort(ids))
    if not len(wanted):
        return old
    listed = ids_sql(wanted)
    found = f"FROM {tables.codes} WHERE {live_sql(tables, old)} AND id IN {listed}"
    size = {"max_query_size": _QUERY_BYTES + 2 * len(listed)}
    (there,) = connection.columns(f"SELECT id {found}", **size) or [()]
    unknown = np.setdiff1d(wanted, np.asarray(there, np.int64))
    if len(unknown):
        shown = ", ".join(map(str, unknown[:_SHOWN].tolist()))
        raise InputError(f"{tables.address} has no id {shown}" + (" and others" if len(unknown) > _SHOWN else ""))
    batch, count = secrets.randbits(63) or 1, old.removed_count + len(wanted)
    connection.run(f"INSERT INTO {tables.removed} SELECT {batch}, segment, id {found}", **size)
    copy_removed(connection, tables, old.removed, batch)
    synced(connection, tables)
    written = connection.value(f"SELECT count() FROM {tables.removed} WHERE batch = {batch}")
    if written != count:
        raise CheckError(f"{tables.address}: {written:,} of {count:,} removed ids arrived: remove them again")
    changed = replace(
        old, content=0, count=old.count - len(wanted), removed=batch, removed_count=count, source="remove"
    )
    if count > min(MAX_REMOVED, old.count // 4):
        changed = _compacted(connection, tables, changed)
    lease.check()
    published = publish(connection, tables, changed, after=old)
    sweep(connection, tables)
    return published


def checked(address: Address) -> Published:
    """Return the version that serves, once the checksums of its codes and the number of removed ids are right.

    Raises:
        InputError: there is none.
        CheckError: rows are missing, or others than were pushed.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection:
        version = current(connection, tables)
        _check_whole(connection, tables, version)
        return version


def rollback(address: Address) -> Published:
    """Publish the content of the version before the one that serves again, under a new number.

    Raises:
        InputError: there is no version before it whose codes are still there.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection, Lease(tables) as lease:
        versions = history(connection, tables)
        if not versions:
            raise InputError(f"{address} has no published version: make one with dmsh-serve gallery push")
        serving = versions[0]
        for version in versions[1:]:
            if version.number >= serving.content:
                continue
            with contextlib.suppress(CheckError):
                _check_whole(connection, tables, version)
                back = replace(version, next_id=serving.next_id)  # an id that was given out does not come back
                lease.check()
                return publish(connection, tables, back, after=serving)
        raise InputError(f"{address} has no whole version before {serving.version}: push the gallery again")


def compact(address: Address) -> Published:
    """Write all codes as one segment, without those that were removed.

    Raises:
        InputError: no gallery there, or another writer is at work.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection, Lease(tables) as lease:
        old = current(connection, tables)
        if len(old.segments) <= 1 and not old.removed_count:
            return old
        compacted = _compacted(connection, tables, replace(old, content=0))
        lease.check()
        published = publish(connection, tables, compacted, after=old)
        sweep(connection, tables)
        return published


def _ids_of_keys(connection: Connection, tables: Tables, version: Published, keys: Sequence[str]) -> Ids:
    if not version.has_keys:
        raise InputError(f"{tables.address} has no keys: remove codes by id")
    listed = ", ".join(map(quoted, keys))
    ids, found = connection.columns(
        f"SELECT id, key FROM {tables.codes} WHERE {live_sql(tables, version)} AND key IN ({listed}) ORDER BY id",
        max_query_size=_QUERY_BYTES + 2 * len(listed.encode()),
    ) or [(), ()]
    if unknown := sorted(set(keys).difference(found)):
        raise InputError(f"{tables.address} has no key {', '.join(unknown[:_SHOWN])}")
    return np.asarray(ids, np.int64)


def pull(address: Address, *, on_progress: Progress | None = None) -> tuple[Contents, Published]:
    """Return all codes of the version that serves, in ascending order of ids.

    Raises:
        InputError: there is none.
        CheckError: it is not whole.
    """
    tables = Tables(address)
    with Connection(address, timeout=PATIENT_SECONDS) as connection:
        version = current(connection, tables)
        names = word_names(version.bits)
        ids = np.empty(version.count, np.int64)
        words = np.empty((version.count, len(names)), np.uint64)
        keys: list[Keys] = []
        done = 0
        for batch in connection.blocks(
            f"SELECT id, {', '.join(names)}{', key' if version.has_keys else ''} FROM {tables.codes} "
            f"WHERE {live_sql(tables, version)} ORDER BY id"
        ):
            part = slice(done, done + batch.num_rows)
            if part.stop > version.count:
                break
            ids[part] = batch.column("id").to_numpy()
            for index, name in enumerate(names):
                words[part, index] = batch.column(name).to_numpy()
            if version.has_keys:
                keys.append(_keys(batch.column("key")))
            done = part.stop
            if on_progress:
                on_progress(done, version.count)
        if done != version.count or (ids[1:] <= ids[:-1]).any():
            raise CheckError(
                f"{address}: version {version.version} does not give the {version.count:,} codes that it has"
            )
    return Contents(ids, codes_of_words(words, version.bits), joined_keys(keys) if version.has_keys else None), version


def _keys(array: Any) -> Keys:
    import pyarrow as pa

    array = array.cast(pa.large_string())
    _, offsets, text = array.buffers()
    own = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.empty(0, np.uint8) if text is None else np.frombuffer(text, np.uint8)[own[0] : own[-1]]
    return Keys(own - own[0], data)


def _check_whole(connection: Connection, tables: Tables, version: Published) -> None:
    """Raise :class:`CheckError` unless every row of a version is still there."""
    for segment in version.segments:
        check_rows(connection, tables, segment, numbers_sql(version.bits, dict(version.columns)))
    found = connection.value(f"SELECT count() FROM {tables.removed} WHERE batch = {version.removed}")
    if found != version.removed_count:
        raise CheckError(f"{tables.address}: {found:,} of {version.removed_count:,} removed ids are there: push again")


def _compacted(connection: Connection, tables: Tables, version: Published) -> Published:
    """Write the live rows of a version as one segment; return the version with it alone."""
    numbers = numbers_sql(version.bits, dict(version.columns))
    live = f"FROM {tables.codes} WHERE {live_sql(tables, version)}"
    name = secrets.randbits(64)
    count, checksum = (column[0] for column in connection.columns(f"SELECT count(), {numbers} {live}"))
    if count != version.count:
        raise CheckError(f"{tables.address}: {count:,} of {version.count:,} codes are there: push the gallery again")
    columns = ", ".join(["id", *word_names(version.bits), "key", *(f"m_{column}" for column, _ in version.columns)])
    connection.run(f"INSERT INTO {tables.codes} (segment, block, {columns}) SELECT {name}, 0, {columns} {live}")
    synced(connection, tables)
    segment = Segment(name, count, checksum)
    check_rows(connection, tables, segment, numbers)
    segments = (segment,) if count else ()
    return replace(version, segments=segments, removed=0, removed_count=0, source="compact")
