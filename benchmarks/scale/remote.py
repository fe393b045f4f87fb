"""ClickHouse on one thread and two, beside the sort of everything, beside the kernels, and what a push costs."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from dmsh_serving import gallery
from dmsh_serving.clickhouse.address import Address
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import open_remote
from dmsh_serving.clickhouse.words import words_of_codes
from dmsh_serving.codes import Codes, uniform_codes
from dmsh_serving.timing import in_turns

__all__ = ["measure_remote"]

BITS: Final = 64
FINGERPRINT: Final = "f" * 64
K: Final = 100


def measure_remote(folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds of a push, and medians in milliseconds of a search for the 100 nearest, each in turns.

    The time of the processor stands beside that of the clock: on a busy machine it is the one that can be compared.
    """
    codes = uniform_codes(count, BITS, seed=1)
    gallery.build(folder / "gallery", codes, None, None, bits=BITS, fingerprint=FINGERPRINT)
    local = gallery.open_current(folder / "gallery")
    address = Address("scale", "codes", folder=folder / "clickhouse", timeout=600)
    start = time.perf_counter()
    push(source_of_gallery(folder / "gallery", local), address)
    found: dict[str, Any] = {"codes": count, "push_seconds": time.perf_counter() - start}
    say(f"push: {found['push_seconds']:.1f} s")
    start = time.perf_counter()
    remote = open_remote(address)
    found["open_seconds"] = time.perf_counter() - start
    with Connection(address) as connection:
        ways = _ways(connection, Tables(address), remote.search, local.search)
        # Of each way its own queries: ClickHouse remembers which granules a condition has met before.
        queries = uniform_codes((rounds + 1) * len(ways), BITS, seed=2).reshape(len(ways), rounds + 1, 1, -1)
        expected = local.search(queries[0, 0], K).ids
        for name, way in ways.items():
            if not np.array_equal(way(queries[0, 0]), expected):
                raise AssertionError(f"{name} gives another answer")
        turn = 0

        def next_round(number: int) -> None:
            nonlocal turn
            turn = number + 1

        processor: list[list[float]] = [[] for _ in ways]

        def timed(number: int, way: Callable[[Codes], object]) -> None:
            before = time.process_time()
            way(queries[number, turn])
            processor[number].append(time.process_time() - before)

        calls = [lambda number=number, way=way: timed(number, way) for number, way in enumerate(ways.values())]
        spent = in_turns(calls, rounds, before_round=next_round)
    found["milliseconds"] = {name: 1e3 * statistics.median(own) for name, own in zip(ways, spent, strict=True)}
    found["processor_milliseconds"] = {
        name: 1e3 * statistics.median(own) for name, own in zip(ways, processor, strict=True)
    }
    found["every_millisecond"] = [1e3 * each for each in spent[0]]
    for name, milliseconds in found["milliseconds"].items():
        say(f"{name}: {milliseconds:.1f} ms, {found['processor_milliseconds'][name]:.1f} ms of the processor")
    return found


def _ways(
    connection: Connection, tables: Tables, remote: Callable[..., Any], local: Callable[..., Any]
) -> dict[str, Callable[[Codes], Any]]:
    """Return what finds the ids of the nearest codes of one query, by name."""
    plain = f"{tables.address.database}.plain"
    connection.run(f"CREATE TABLE {plain} (id Int64, w0 UInt64) ENGINE = MergeTree ORDER BY id")
    connection.run(f"INSERT INTO {plain} SELECT id, w0 FROM {tables.codes}")

    def sort_of_all(query: Codes, table: str, **settings: int) -> Any:
        (word,) = words_of_codes(query)[0].tolist()
        found = connection.columns(
            f"SELECT id, bitCount(bitXor(w0, toUInt64({word}))) AS far FROM {table} ORDER BY far, id LIMIT {K}",
            max_threads=1,
            **settings,
        )
        return np.asarray(found[0])[None]

    without = {"use_top_k_dynamic_filtering": 0}
    return {
        "engine, 1 thread": lambda query: remote(query, K, threads=1).ids,
        "engine, 2 threads": lambda query: remote(query, K, threads=2).ids,
        "ORDER BY over all of a table as one would make it": lambda query: sort_of_all(query, plain, **without),
        "the same with the server's own top-k filter": lambda query: sort_of_all(query, plain),
        "ORDER BY over all of the engine's table": lambda query: sort_of_all(query, tables.codes, **without),
        "kernels, 1 thread": lambda query: local(query, K, threads=1).ids,
    }
