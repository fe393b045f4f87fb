"""The tables of a gallery, on one server or spread over a cluster, from the same code.

On one server they are ``MergeTree``. On a cluster ``codes_NAME_local`` is a ``ReplicatedMergeTree`` on every shard and
``codes_NAME`` a ``Distributed`` table over them; the two small tables are replicated to every server.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.words import word_names

__all__ = ["KINDS", "Tables"]

KINDS: Final = {"String": str, "Int64": int, "Float64": float}
"""The types that a metadata column may have."""

_DEDUPLICATED: Final = 10_000  # inserts whose tokens are remembered: two writers cannot publish the same number

_DURABLE: Final = "fsync_after_insert = 1, fsync_part_directory = 1"
"""What is acknowledged is on the disk."""

_GRANULE: Final = 2048  # rows: a search reads the ids of every granule that holds a near code


@dataclass(frozen=True)
class Tables:
    """The names of a gallery's tables at ``address``, and the statements that make them."""

    address: Address
    source: str = ""
    share: str = ""
    """For tests of plans over shards: a table function that is read instead of the table, and the share of a shard."""

    @property
    def codes(self) -> str:
        """Where codes are read and inserted."""
        return self.source or self._named(f"codes_{self.address.gallery}")

    @property
    def local_codes(self) -> str:
        """The table that holds the rows, on every shard."""
        return self._named(f"codes_{self.address.gallery}{'_local' if self.address.cluster else ''}")

    @property
    def removed(self) -> str:
        """Which codes of which segments were taken away."""
        return self._named(f"removed_{self.address.gallery}")

    @property
    def galleries(self) -> str:
        """One row per published version of any gallery of the database."""
        return self._named("galleries")

    @property
    def leases(self) -> str:
        """Who may change a gallery, and until when."""
        return self._named("leases")

    @property
    def on_cluster(self) -> str:
        """What makes a statement run on every server."""
        return f" ON CLUSTER {self.address.cluster}" if self.address.cluster else ""

    def statements(self, bits: int, columns: Mapping[str, str]) -> Iterator[str]:
        """Yield what makes the tables unless they are there.

        Args:
            bits: bits per code.
            columns: type in ClickHouse by name of each metadata column.
        """
        words = ", ".join(f"{name} UInt64 CODEC(NONE)" for name in word_names(bits))  # codes do not compress
        own = "".join(f", m_{name} {kind}" for name, kind in columns.items())
        ids = f"id Int64 CODEC(Delta, LZ4) SETTINGS (min_compress_block_size = {8 * _GRANULE})"
        fields = f"segment UInt64, block UInt32, {ids}, {words}, key String{own}"
        yield f"CREATE DATABASE IF NOT EXISTS {self.address.database}{self.on_cluster}"
        yield (
            f"CREATE TABLE IF NOT EXISTS {self.galleries}{self.on_cluster} (gallery String, number UInt64, "
            "version String, content UInt64, bits UInt16, fingerprint String, count UInt64, next_id UInt64, "
            "has_keys UInt8, segments Array(UInt64), counts Array(UInt64), sums Array(UInt64), removed UInt64, "
            "removed_count UInt64, columns Array(String), kinds Array(String), source String, "
            "published DateTime64(3, 'UTC') DEFAULT now64(3)) "
            f"{self._everywhere('galleries')} ORDER BY (gallery, number) SETTINGS {self._window}, {_DURABLE}"
        )
        yield (
            f"CREATE TABLE IF NOT EXISTS {self.leases}{self.on_cluster} (gallery String, term UInt64, owner String, "
            "until DateTime64(6, 'UTC'), written DateTime64(6, 'UTC') DEFAULT now64(6)) "
            f"{self._everywhere('leases')} ORDER BY (gallery, term) SETTINGS {self._window}, {_DURABLE}"
        )
        yield (
            f"CREATE TABLE IF NOT EXISTS {self.removed}{self.on_cluster} (batch UInt64, segment UInt64, id Int64) "
            f"{self._everywhere(f'removed_{self.address.gallery}')} PARTITION BY batch ORDER BY (segment, id) "
            f"SETTINGS {_DURABLE}"
        )
        yield (
            f"CREATE TABLE IF NOT EXISTS {self.local_codes}{self.on_cluster} ({fields}) "
            f"{self._sharded(f'codes_{self.address.gallery}')} PARTITION BY segment ORDER BY id "
            f"SETTINGS index_granularity = {_GRANULE}, {_DURABLE}"
        )
        if self.address.cluster:
            local = f"codes_{self.address.gallery}_local"
            yield (
                f"CREATE TABLE IF NOT EXISTS {self.codes}{self.on_cluster} AS {self.local_codes} ENGINE = "
                f"Distributed({self.address.cluster}, {self.address.database}, {local}, intHash64(id))"
            )

    @property
    def _window(self) -> str:
        name = "replicated_deduplication_window" if self.address.cluster else "non_replicated_deduplication_window"
        return f"{name} = {_DEDUPLICATED}"

    def _named(self, table: str) -> str:
        return f"{self.address.database}.{table}"

    def _everywhere(self, table: str) -> str:
        """Return the engine of a small table that every server has whole."""
        if not self.address.cluster:
            return "ENGINE = MergeTree"
        path = f"/clickhouse/dmsh/{self.address.database}/{table}"
        return f"ENGINE = ReplicatedMergeTree('{path}', '{{shard}}-{{replica}}')"

    def _sharded(self, table: str) -> str:
        """Return the engine of a table of which every shard has its share."""
        if not self.address.cluster:
            return "ENGINE = MergeTree"
        return (
            f"ENGINE = ReplicatedMergeTree('/clickhouse/dmsh/{self.address.database}/{{shard}}/{table}', '{{replica}}')"
        )
