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
from dmsh_serving.codes import uniform_codes
from dmsh_serving.timing import in_turns

__all__ = ["measure_remote"]

BITS: Final = 64
FINGERPRINT: Final = "f" * 64
K: Final = 100


def measure_remote(folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds of a push, and medians in milliseconds of a search for the 100 nearest, each in turns."""
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
    queries, tables = uniform_codes(rounds + 1, BITS, seed=2), Tables(address)
    for query in range(2):
        one = queries[query : query + 1]
        if not np.array_equal(remote.search(one, K).ids, local.search(one, K).ids):
            raise AssertionError("the answers differ")
    turn = 0

    def next_round(number: int) -> None:
        nonlocal turn
        turn = number

    with Connection(address) as connection:

        def sort_of_all(**settings: int) -> None:
            (word,) = words_of_codes(queries[turn : turn + 1])[0].tolist()
            distance = f"bitCount(bitXor(w0, toUInt64({word})))"
            connection.columns(
                f"SELECT id, {distance} AS far FROM {tables.codes} ORDER BY far, id LIMIT {K}",
                max_threads=1,
                use_query_condition_cache=0,
                **settings,
            )

        ways: dict[str, Callable[[], object]] = {
            "engine, 1 thread": lambda: remote.search(queries[turn : turn + 1], K, threads=1),
            "engine, 2 threads": lambda: remote.search(queries[turn : turn + 1], K, threads=2),
            "ORDER BY over all, 1 thread": lambda: sort_of_all(use_top_k_dynamic_filtering=0),
            "the same with the server's own top-k filter": sort_of_all,
            "kernels, 1 thread": lambda: local.search(queries[turn : turn + 1], K, threads=1),
        }
        for way in ways.values():
            way()
        spent = in_turns(list(ways.values()), rounds, before_round=next_round)
    found["milliseconds"] = {name: 1e3 * statistics.median(own) for name, own in zip(ways, spent, strict=True)}
    found["every_millisecond"] = [1e3 * each for each in spent[0]]
    for name, milliseconds in found["milliseconds"].items():
        say(f"{name}: {milliseconds:.1f} ms")
    return found
