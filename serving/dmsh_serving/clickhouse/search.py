"""Search in one published version: the answers of a gallery folder, computed by ClickHouse.

``ORDER BY distance, id LIMIT k`` over all codes is the answer, and slow: it keeps every row in the race. So a distance
within which the k nearest should lie, the *cut*, is guessed from a sample of the codes, and only rows within it are
sorted. If fewer than k come back, the cut is raised, at last to no cut at all. A guess costs time alone.
What was tried beside this, and what each part saves, is in ``docs/scale.md``.

A version's segments stay for 10 minutes after it was superseded (:func:`dmsh_serving.clickhouse.catalogue.sweep`). A
version confirms that it may answer: every 30 seconds that this time is not half over, and every second that
its rows are there. An answer of fewer than k codes is confirmed at once.
"""

import base64
import math
import threading
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from dmsh_serving import hamming
from dmsh_serving.checks import check_model, checked_k
from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.catalogue import GRACE_SECONDS, Published, current, superseded_seconds
from dmsh_serving.clickhouse.conditions import Condition, conditions_sql
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.words import Words, codes_of_words, word_names, words_of_codes
from dmsh_serving.codes import Codes, check_codes
from dmsh_serving.contract import MAX_K, PAD_DISTANCE, PAD_ID, PAD_KEY
from dmsh_serving.errors import CheckError
from dmsh_serving.gallery.part import Ids, ascending_ids
from dmsh_serving.gallery.snapshot import SearchResult
from dmsh_serving.hamming.inputs import checked_radius

__all__ = ["RemoteVersion", "ids_sql", "live_sql", "open_remote"]

_CONFIRMED_SECONDS: Final = 30.0
_COUNTED_SECONDS: Final = 1.0
_SAMPLE: Final = 1 << 20  # codes; the larger it is, the closer is the first cut
_TOGETHER: Final = 4  # queries per statement; one scan for all of them was tried, and is no faster
_MORE: Final = 8  # how many times as many codes of the sample the next cut lets in
_QUERY_BYTES: Final = 1 << 20  # of one statement, beside its list of ids
_LISTED: Final = 1000
# Few rows of a block pass the cut, so that what a block itself costs counts: large blocks, but in a core's cache.
_BLOCKS: Final = {"max_block_size": 1 << 18, "preferred_block_size_bytes": 4 << 20}
_FEW: Final = 1 / 64  # of the codes: so few ids are looked up, and no cut is guessed


class RemoteVersion:
    """One published version, ready to be searched; it has what :func:`dmsh_serving.ranker.asks.rank` asks for.

    A *row* is an id here. Several threads may search.
    """

    def __init__(self, connection: Connection, tables: Tables, published: Published) -> None:
        self.published = published
        self._connection, self._tables = connection, tables
        self._lock = threading.Lock()
        self._confirmed = self._counted = -math.inf
        self._confirm()
        self._sample = self._sampled()

    @property
    def version(self) -> str:
        """The name of the version."""
        return self.published.version

    @property
    def count(self) -> int:
        """The number of codes that can be found."""
        return self.published.count

    @property
    def bits(self) -> int:
        """Bits per code."""
        return self.published.bits

    @property
    def _named(self) -> str:
        return f"{self._tables.address}: version {self.version}"

    def search(
        self,
        queries: Codes,
        k: int,
        *,
        radius: int | None = None,
        allowed: Ids | None = None,
        conditions: Sequence[Condition] = (),
        threads: int | None = None,
    ) -> SearchResult:
        """Return the k nearest codes of each query, as :meth:`dmsh_serving.gallery.Snapshot.search` does.

        Args:
            queries: (Q, B) uint8.
            k: results per query, 1 to ``contract.MAX_K``; the rest is padding.
            radius: find only codes at most this far; None for any distance.
            allowed: (M,) int64, find only codes with these ids; None for all.
            conditions: find only codes whose metadata fulfil all of these.
            threads: most threads of a server per query; None leaves it to the server.

        Raises:
            InputError: codes of another width or dtype, k or radius out of range, or a condition that cannot be.
            UnavailableError: ClickHouse, or a shard of it, does not answer.
            CheckError: the version is no longer whole.
        """
        check_codes(queries, self.bits)
        checked_k(k)
        self._confirm()
        farthest = self.bits if radius is None else min(self.bits, checked_radius(radius))
        where = live_sql(self._tables, self.published) + conditions_sql(conditions, dict(self.published.columns))
        wanted = None if allowed is None else ascending_ids(allowed)
        if wanted is not None:
            where += f" AND id IN {ids_sql(wanted)}"
        settings: dict[str, object] = {**_BLOCKS, "max_query_size": _QUERY_BYTES + 2 * len(where) * _TOGETHER}
        if threads is not None:
            settings["max_threads"] = threads
        ids = np.full((len(queries), k), PAD_ID, np.int64)
        distances = np.full((len(queries), k), PAD_DISTANCE, np.int32)
        together = _TOGETHER if wanted is None else 1
        for start in range(0, len(queries), together):
            part = slice(start, start + together)
            few = wanted is not None and len(wanted) <= _FEW * self.count
            cuts = [[farthest]] * len(queries[part]) if few else self._cuts(queries[part], k, farthest)
            self._search(queries[part], k, cuts, where, settings, ids[part], distances[part])
        if (ids[:, : min(k, self.count)] == PAD_ID).any():
            self._confirm_rows()
            if wanted is None and not conditions and farthest == self.bits:
                raise CheckError(f"{self._named} gives fewer codes than it holds: push it again")
        return SearchResult(ids, distances, ids.copy())

    def codes_of(self, rows: npt.NDArray[np.int64]) -> Codes:
        """Return the codes of ids of any shape S, as uint8 S + (B,); zeros for padding."""
        names = word_names(self.bits)
        words = np.zeros((rows.size, len(names)), np.uint64)
        columns, places = self._looked_up(rows, names)
        for index, column in enumerate(columns):
            words[places >= 0, index] = np.asarray(column, np.uint64)[places[places >= 0]]
        return codes_of_words(words, self.bits).reshape(*rows.shape, -1)

    def keys_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the keys of ids, flattened; ``contract.PAD_KEY`` for padding or a gallery without keys."""
        if not self.published.has_keys:
            return [PAD_KEY] * rows.size
        columns, places = self._looked_up(rows, ["key"])
        return [PAD_KEY if place < 0 else str(columns[0][place]) for place in places.tolist()]

    def _looked_up(self, rows: Ids, names: list[str]) -> tuple[list[Sequence[object]], Ids]:
        """Return columns of the codes with ids ``rows``, and where in them each of ``rows``, flattened, is; or -1."""
        flat = rows.reshape(-1)
        wanted = ascending_ids(np.sort(flat[flat != PAD_ID]))
        places = np.full(flat.size, -1, np.int64)
        if not wanted.size:
            return [], places
        listed = ids_sql(wanted)
        found = self._connection.columns(
            f"SELECT id, {', '.join(names)} FROM {self._tables.codes} WHERE "
            f"{live_sql(self._tables, self.published)} AND id IN {listed} ORDER BY id",
            max_query_size=_QUERY_BYTES + 2 * len(listed),
        )
        there = np.asarray(found[0], np.int64) if found else np.empty(0, np.int64)
        if not np.array_equal(there, wanted):
            raise CheckError(f"{self._named} has lost codes: push it again")
        places[flat != PAD_ID] = np.searchsorted(there, flat[flat != PAD_ID])
        return found[1:], places

    def _search(
        self, queries: Codes, k: int, cuts: list[list[int]], where: str, settings: dict[str, object],
        ids: Ids, distances: npt.NDArray[np.int32],
    ) -> None:  # fmt: skip
        """Fill in the answers of a few queries; each is asked again with its next cut until k are found."""
        words = words_of_codes(queries)
        waiting = {query: iter(own) for query, own in enumerate(cuts)}
        while waiting:
            asked = {query: cut for query, own in waiting.items() if (cut := next(own, None)) is not None}
            columns = self._connection.columns(
                " UNION ALL ".join(
                    _nearest_sql(self._tables.codes, query, words[query], cut, where, k) for query, cut in asked.items()
                ),
                **settings,
            )
            of, found, far = (np.asarray(column, np.int64) for column in columns or ((), (), ()))
            for query, cut in asked.items():
                own = of == query
                if own.sum() < k and cut != cuts[query][-1]:
                    continue
                order = np.lexsort((found[own], far[own]))  # a union keeps no order
                ids[query, : len(order)] = found[own][order]
                distances[query, : len(order)] = far[own][order]
                del waiting[query]

    def _cuts(self, queries: Codes, k: int, farthest: int) -> list[list[int]]:
        """Return for each query the cuts to try, ascending; the last one is ``farthest``.

        If the k nearest are a share p of all codes, about x = p S of the S sampled ones are among them; that it is more
        than x + 3 sqrt(x) + 2 is rare.
        """
        if not len(self._sample) or k >= self.count:
            return [[farthest]] * len(queries)
        most = min(len(self._sample), MAX_K)
        expected = k * len(self._sample) / self.count
        ranks = [math.ceil(expected + 3 * math.sqrt(expected) + 2)]
        while ranks[-1] < most:
            ranks.append(_MORE * ranks[-1])
        ranks = [rank for rank in ranks if rank <= most]
        if not ranks:
            return [[farthest]] * len(queries)
        sampled, _ = hamming.search(queries, self._sample, ranks[-1])
        return [
            [*sorted({int(own[rank - 1]) for rank in ranks if own[rank - 1] < farthest}), farthest] for own in sampled
        ]

    def _sampled(self) -> Codes:
        """Return about a million codes, chosen by a hash of their ids; all of them if there are no more."""
        names = word_names(self.bits)
        every = -(-max(1, self.count) // _SAMPLE)
        columns = self._connection.columns(
            f"SELECT {', '.join(names)} FROM {self._tables.codes} WHERE {live_sql(self._tables, self.published)} "
            f"AND intHash64(id) % {every} = 0"
        )
        if not columns:
            return np.empty((0, (self.bits + 7) // 8), np.uint8)
        words: Words = np.stack([np.asarray(column, np.uint64) for column in columns], axis=1)
        return codes_of_words(words, self.bits)

    def _confirm(self) -> None:
        """Check now and then that this version's rows are there, and stay for a while."""
        with self._lock:
            now = time.monotonic()
            if now >= self._confirmed + _CONFIRMED_SECONDS:
                if superseded_seconds(self._connection, self._tables, self.published) > GRACE_SECONDS / 2:
                    raise CheckError(f"{self._named} was superseded long ago: open the gallery again")
                self._confirmed = now
            if now >= self._counted + _COUNTED_SECONDS:
                self._confirm_rows()
                self._counted = now

    def _confirm_rows(self) -> None:
        """Check that all rows of this version are there, and those that say which were removed."""
        tables, published = self._tables, self.published
        counted = f"SELECT count() FROM {tables.codes} WHERE {_held_sql(tables, published)}"
        gone = f"SELECT count() FROM {tables.removed} WHERE batch = {published.removed}"
        both = f"SELECT ({counted}), {f'({gone})' if published.removed_count else 0}"
        (found,), (removed,) = self._connection.columns(both)
        held = sum(segment.count for segment in published.segments)
        if (found, removed) != (held, published.removed_count):
            raise CheckError(
                f"{self._named} has {found:,} of {held:,} rows and {removed:,} of {published.removed_count:,} removed "
                "ids: push it again"
            )


def open_remote(
    address: Address, *, fingerprint: str | None = None, bits: int | None = None, connection: Connection | None = None
) -> RemoteVersion:
    """Open the version that serves; arguments as of :func:`dmsh_serving.gallery.open_current`.

    Raises:
        InputError: there is none.
        OtherModelError: of another fingerprint or bit count than asked for (both are named).
        UnavailableError: ClickHouse does not answer.
    """
    tables = Tables(address)
    connection = connection or Connection(address)
    published = current(connection, tables)
    check_model(address, published, bits=bits, fingerprint=fingerprint, advice="push a gallery of this model")
    return RemoteVersion(connection, tables, published)


def live_sql(tables: Tables, published: Published) -> str:
    """Return the condition that a row belongs to a version."""
    where = _held_sql(tables, published)
    if published.removed_count:
        where += (
            f" AND (segment, id) NOT IN (SELECT segment, id FROM {tables.removed} WHERE batch = {published.removed})"
        )
    return where


def _held_sql(tables: Tables, published: Published) -> str:
    return f"_partition_id IN ({published.partitions})" + (f" AND {tables.share}" if tables.share else "")


def ids_sql(ids: Ids) -> str:
    """Return a list of ids as SQL; a long one as bytes, since the parser takes 40 us per number."""
    if len(ids) <= _LISTED:
        return f"({', '.join(map(str, ids.tolist())) or PAD_ID})"
    data = base64.b64encode(ids.astype("<i8").tobytes()).decode()
    return f"(SELECT arrayJoin(reinterpret(base64Decode('{data}'), 'Array(Int64)')))"


def _nearest_sql(codes: str, query: int, words: npt.NDArray[np.uint64], cut: int, where: str, k: int) -> str:
    distance = " + ".join(
        f"bitHammingDistance(w{index}, toUInt64({word}))" for index, word in enumerate(words.tolist())
    )
    return (
        f"(SELECT {query} AS query, id, {distance} AS distance FROM {codes} PREWHERE {distance} <= {cut} WHERE {where} "
        f"ORDER BY distance, id LIMIT {k})"
    )
