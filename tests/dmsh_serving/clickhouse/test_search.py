"""Answers of ClickHouse are those of the gallery folder and of the oracle, whatever holds the rows."""

import dataclasses
import time

import clickhouse_world
import numpy as np
import pytest
from clickhouse_world import F

from dmsh_serving import gallery
from dmsh_serving.clickhouse import search
from dmsh_serving.clickhouse.catalogue import current
from dmsh_serving.clickhouse.changes import compact, remove
from dmsh_serving.clickhouse.conditions import Condition
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery, source_of_parquet
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import RemoteVersion, open_remote
from dmsh_serving.codes import uniform_codes
from dmsh_serving.contract import MAX_K, PAD_ID
from dmsh_serving.errors import CheckError, InputError, OtherModelError
from dmsh_serving.hamming.oracle import search_oracle

COUNT = 1500


def tied_codes(count, bits, seed=0):
    """Codes of which every one is there about ten times."""
    few = uniform_codes(max(1, count // 10), bits, seed)
    return few[np.random.default_rng(seed).integers(0, len(few), count)]


def pushed(folder, codes, ids=None, bits=64, keys=None):
    gallery.build(folder, codes, ids, keys, bits=bits, fingerprint=F, overwrite=True)
    address = clickhouse_world.address()
    push(source_of_gallery(folder, gallery.open_current(folder)), address)
    return address


def two_shards(address):
    """The version that serves, planned as ClickHouse plans it over two shards, with half of the rows on each."""
    tables = Tables(address)
    both = dataclasses.replace(
        tables, source=f"remote('127.0.0.1,localhost', {tables.codes})", share="id % 2 = shardNum() - 1"
    )
    connection = Connection(address)
    version = RemoteVersion.__new__(RemoteVersion)
    whole = open_remote(address, connection=connection)
    version.__dict__.update(whole.__dict__, _tables=both)
    return version


def assert_same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("bits", [64, 250])  # tests/scale has more
def test_one_server_and_two_shards_answer_as_the_folder_does(tmp_path, bits):
    codes = tied_codes(COUNT, bits, seed=bits)
    ids = np.random.default_rng(bits).permutation(10 * COUNT)[:COUNT]
    address = pushed(tmp_path / "g", codes, ids, bits)
    local = gallery.open_current(tmp_path / "g")
    queries = np.concatenate([codes[:2], uniform_codes(3, bits, seed=bits + 1)])
    for remote in (open_remote(address), two_shards(address)):
        for k in (1, 500, MAX_K):
            assert_same(remote.search(queries, k), local.search(queries, k))
        for radius in (0, bits // 3):
            assert_same(remote.search(queries, 50, radius=radius), local.search(queries, 50, radius=radius))
        for allowed in (ids[:0], ids[:5], ids[::2], np.array([ids[3], 10**15, ids[3]])):
            assert_same(remote.search(queries, 20, allowed=allowed), local.search(queries, 20, allowed=allowed))


def test_the_answer_is_the_oracles(tmp_path):
    codes = tied_codes(COUNT, 24)
    remote = open_remote(pushed(tmp_path / "g", codes, bits=24))
    found = remote.search(codes[:4], 700)
    distances, rows = search_oracle(codes[:4], codes, 700)
    np.testing.assert_array_equal(found.ids, rows)
    np.testing.assert_array_equal(found.distances, distances)


def test_two_shards_really_share_the_rows(tmp_path):
    address = pushed(tmp_path / "g", tied_codes(COUNT, 64))
    tables = two_shards(address)._tables
    with Connection(address) as connection:
        (shards, counts) = connection.columns(
            f"SELECT shardNum(), count() FROM {tables.codes} WHERE {tables.share} GROUP BY 1 ORDER BY 1"
        )
        (plan,) = connection.columns(f"EXPLAIN SELECT id FROM {tables.codes} ORDER BY id LIMIT 3")
    assert (list(shards), list(counts)) == ([1, 2], [COUNT // 2, COUNT // 2])
    assert sum("preliminary LIMIT (with OFFSET)" in line for line in plan) == 2


def test_a_guess_that_lets_too_few_in_is_raised(tmp_path, monkeypatch):
    codes = uniform_codes(COUNT, 64, seed=3)
    address = pushed(tmp_path / "g", codes)
    remote = open_remote(address)
    monkeypatch.setattr(remote, "_cuts", lambda queries, k, farthest: [[0, 5, 20, farthest]] * len(queries))
    statements = []
    ask = Connection.columns
    monkeypatch.setattr(Connection, "columns", lambda self, sql, **own: statements.append(sql) or ask(self, sql, **own))
    assert_same(remote.search(codes[:2], 40), gallery.open_current(tmp_path / "g").search(codes[:2], 40))
    assert len(statements) == 4


def test_the_first_guess_is_nearly_always_enough_and_lets_few_in(tmp_path):
    codes = uniform_codes(COUNT, 64, seed=3)
    remote = open_remote(pushed(tmp_path / "g", codes))
    remote._sample = codes[::3]
    queries = uniform_codes(200, 64, seed=4)
    distances = np.unpackbits(queries[:, None] ^ codes, axis=2).sum(axis=2)
    let_in = (distances <= np.array([cuts[0] for cuts in remote._cuts(queries, 10, 64)])[:, None]).sum(axis=1)
    assert (let_in >= 10).mean() > 0.97
    assert np.median(let_in) < 100


def test_keys_and_codes_are_found_by_id(tmp_path):
    codes, ids = tied_codes(50, 70), np.arange(50) * 7
    remote = open_remote(pushed(tmp_path / "g", codes, ids, 70, [f"é{number}'\\" for number in range(50)]))
    rows = np.array([[0, 7, PAD_ID], [343, 0, 0]])
    assert remote.keys_of(rows) == ["é0'\\", "é1'\\", "", "é49'\\", "é0'\\", "é0'\\"]
    np.testing.assert_array_equal(remote.codes_of(rows)[rows >= 0], codes[rows[rows >= 0] // 7])
    assert not remote.codes_of(rows)[0, 2].any()
    with pytest.raises(CheckError, match="has lost codes"):
        remote.keys_of(np.array([8]))


def test_appends_removals_and_compaction_in_between_change_no_answer(tmp_path):
    folder, codes = tmp_path / "g", tied_codes(COUNT, 64)
    address = pushed(folder, codes)
    gallery.append(folder, tied_codes(100, 64, seed=9), None, None)
    gallery.remove(folder, np.array([3, 4, 5, COUNT + 1]))
    _, sent = push(source_of_gallery(folder, gallery.open_current(folder)), address)
    assert sent == 100
    remove(address, np.arange(100, 140))
    gallery.remove(folder, np.arange(100, 140))
    gallery.append(folder, codes[100:101], np.array([100]), None)  # an id that was removed comes back
    local = gallery.open_current(folder)
    push(source_of_gallery(folder, local), address)
    queries = codes[98:104]
    assert_same(open_remote(address).search(queries, 400), local.search(queries, 400))
    assert_same(two_shards(address).search(queries, 400), local.search(queries, 400))
    compacted = compact(address)
    assert (len(compacted.segments), compacted.removed_count) == (1, 0)
    assert_same(open_remote(address).search(queries, 400), local.search(queries, 400))


def test_an_empty_gallery_answers_with_padding(tmp_path):
    remote = open_remote(pushed(tmp_path / "g", np.empty((0, 8), np.uint8)))
    assert (remote.search(uniform_codes(2, 64, 1), 3).ids == PAD_ID).all()


def test_metadata_filters_the_search(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    codes, price = tied_codes(200, 64), np.arange(200) % 7
    colour = ["red" if number % 3 else "bl'ue" for number in range(200)]
    turn = np.resize([0.0, -0.0, 1.5, -1.5], 200)
    table = pa.table(
        {
            "id": np.arange(200),
            "code": pa.array([row.tobytes() for row in codes]),
            "price": price,
            "colour": colour,
            "turn": turn,
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    address = clickhouse_world.address()
    push(source_of_parquet(tmp_path / "t.parquet", ("price", "colour", "turn"), 64, F), address)
    remote = open_remote(address)
    is_red = np.array(colour) == "red"
    for conditions, allowed in (
        ([Condition("price", "<", 3)], price < 3),
        ([Condition("price", ">=", 3), Condition("colour", "=", "bl'ue")], (price >= 3) & ~is_red),
        ([Condition("colour", "in", ["red", "green"])], is_red),
        ([Condition("colour", "!=", "x' OR 1=1 --")], is_red | True),
        ([Condition("turn", "=", 0)], turn == 0),
        ([Condition("turn", "in", [0])], turn == 0),
        ([Condition("turn", "in", [-0.0, 1.5])], turn >= 0),
    ):
        distances, rows = search_oracle(codes[:3], codes, 60, allowed)
        found = remote.search(codes[:3], 60, conditions=conditions)
        np.testing.assert_array_equal(found.ids, rows)
        np.testing.assert_array_equal(found.distances, distances)
    for wrong, reason in (
        (Condition("size", "=", 1), "no metadata column 'size'"),
        (Condition("price", "LIKE", 1), "an operator is one of"),
        (Condition("price", "=", "1 OR 1"), "no value of it"),
        (Condition("price", "=", True), "no value of it"),
        (Condition("colour", "in", "red"), "give a list"),
    ):
        with pytest.raises(InputError, match=reason):
            remote.search(codes[:1], 1, conditions=[wrong])


def test_another_model_is_refused_by_name(tmp_path):
    address = pushed(tmp_path / "g", tied_codes(20, 64))
    with pytest.raises(OtherModelError, match="have 64 bits, not 32 and its fingerprint"):
        open_remote(address, bits=32, fingerprint="0" * 64)


def test_a_version_that_has_lost_rows_is_an_error_and_never_a_shorter_answer(tmp_path):
    address = pushed(tmp_path / "g", tied_codes(COUNT, 64))
    remote = open_remote(address)
    with Connection(address) as connection:
        tables = Tables(address)
        segment = current(connection, tables).segments[0].name
        connection.run(f"ALTER TABLE {tables.local_codes} DROP PARTITION {segment}")
    for narrowed in ({}, {"radius": 40}, {"allowed": np.arange(20)}):
        remote._counted = time.monotonic() + 100  # an answer that is short is looked into at once
        with pytest.raises(CheckError, match="has 0 of 1,500 rows"):
            remote.search(uniform_codes(1, 64, 1), 5, **narrowed)


@pytest.mark.parametrize("table", ["codes_photos", "removed_photos"])
def test_rows_that_were_lost_in_part_are_noticed_within_a_second(tmp_path, table):
    address = pushed(tmp_path / "g", tied_codes(COUNT, 64))
    remove(address, np.array([3, 4]))
    remote = open_remote(address)
    with Connection(address) as connection:
        connection.run(f"ALTER TABLE {address.database}.{table} DELETE WHERE id = 3", mutations_sync=2)
    remote._counted -= 1
    with pytest.raises(CheckError, match=r"1,499 of 1,500 rows|1 of 2 removed ids"):
        remote.search(uniform_codes(1, 64, 1), 5)


def test_a_version_that_was_superseded_long_ago_says_so(tmp_path, monkeypatch):
    address = pushed(tmp_path / "g", tied_codes(100, 64))
    remote = open_remote(address)
    for number in (1, 2):
        assert remote.search(uniform_codes(1, 64, 1), 5).ids.shape == (1, 5)
        remove(address, np.array([number]))
        remote._confirmed -= 100
    assert remote.search(uniform_codes(1, 64, 1), 5).ids.shape == (1, 5)  # changes in a row are no reason
    monkeypatch.setattr(search, "GRACE_SECONDS", -1)
    remote._confirmed -= 100
    with pytest.raises(CheckError, match="was superseded"):
        remote.search(uniform_codes(1, 64, 1), 5)
