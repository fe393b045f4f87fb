"""Pushing, and what goes wrong meanwhile: kills, two writers, other models, damaged arrivals."""

import dataclasses
import time

import clickhouse_world
import numpy as np
import pytest
from clickhouse_world import F

from dmsh_serving import gallery
from dmsh_serving.clickhouse import catalogue, changes, rows
from dmsh_serving.clickhouse import lease as lease_module
from dmsh_serving.clickhouse.catalogue import current, history, publish
from dmsh_serving.clickhouse.changes import compact, pull, remove, remove_keys, rollback
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.lease import Lease
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery, source_of_parquet
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import open_remote
from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import CheckError, InputError, UnavailableError

COUNT = 1000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 100)
    keys = [f"key-{number}" for number in range(COUNT)]
    gallery.build(tmp_path / "g", uniform_codes(COUNT, 64, 1), None, keys, bits=64, fingerprint=F)
    return tmp_path / "g"


def source(folder):
    return source_of_gallery(folder, gallery.open_current(folder))


@pytest.fixture
def address(folder):
    found = clickhouse_world.address()
    push(source(folder), found)
    return found


def test_a_published_push_succeeds_though_what_nothing_needs_cannot_be_dropped(folder, address, monkeypatch):
    def away(*_):
        raise UnavailableError("it does not answer")

    monkeypatch.setattr(catalogue, "_sweep", away)
    gallery.append(folder, uniform_codes(5, 64, 9), None, [f"new-{number}" for number in range(5)])
    version, sent = push(source(folder), address)
    assert (version.count, sent) == (COUNT + 5, 5)


def test_a_push_that_was_killed_goes_on_where_it_was(folder, monkeypatch):
    address, insert, sent = clickhouse_world.address(), Connection.insert, []

    def dying(self, table, block, **settings):
        if len(sent) == 4:
            raise KeyboardInterrupt
        sent.append(block.num_rows)
        insert(self, table, block, **settings)

    monkeypatch.setattr(Connection, "insert", dying)
    with pytest.raises(KeyboardInterrupt):
        push(source(folder), address)
    with Connection(address) as connection:
        assert history(connection, Tables(address)) == []  # half a version is not there for readers
    monkeypatch.setattr(Connection, "insert", insert)
    version, count = push(source(folder), address)
    assert (version.count, count) == (COUNT, 600)
    assert push(source(folder), address)[1] == 0


def test_a_block_that_arrived_in_part_is_sent_again(folder, address):
    tables = Tables(address)
    with Connection(address) as connection:
        connection.run(f"ALTER TABLE {tables.local_codes} DELETE WHERE block = 3 AND id % 2", mutations_sync=2)
        connection.run(f"ALTER TABLE {tables.local_codes} UPDATE w0 = w0 + 1 WHERE id = 555", mutations_sync=2)
    assert push(source(folder), address)[1] == 200
    local = gallery.open_current(folder).search(uniform_codes(2, 64, 2), 50)
    np.testing.assert_array_equal(open_remote(address).search(uniform_codes(2, 64, 2), 50).ids, local.ids)


def test_what_is_acknowledged_is_on_the_disk(address):
    with Connection(address) as connection:
        (engines,) = connection.columns(
            f"SELECT engine_full FROM system.tables WHERE database = '{address.database}' AND engine = 'MergeTree'"
        )
    assert len(engines) == 4
    for engine in engines:
        assert "fsync_after_insert = 1" in engine.replace("true", "1")
        assert "fsync_part_directory = 1" in engine.replace("true", "1")


def test_a_block_is_sent_again_to_tables_that_remember_what_was_inserted(folder):
    """As those of a cluster do."""
    address = clickhouse_world.address()
    tables = Tables(address)
    with Connection(address) as connection:
        for statement in tables.statements(source(folder).bits, source(folder).kinds):
            connection.run(statement)
        window = "MODIFY SETTING non_replicated_deduplication_window = 1000"
        connection.run(f"ALTER TABLE {tables.local_codes} {window}")
        push(source(folder), address)
        connection.run(f"ALTER TABLE {tables.local_codes} DELETE WHERE block = 3 AND id % 2", mutations_sync=2)
    assert push(source(folder), address)[1] == 100


def test_what_arrives_otherwise_than_it_was_sent_is_not_published(folder, monkeypatch):
    address, insert = clickhouse_world.address(), Connection.insert
    monkeypatch.setattr(
        Connection, "insert", lambda self, table, block, **own: insert(self, table, block.slice(1), **own)
    )
    with pytest.raises(CheckError, match="990 of 1,000 rows are there"):
        push(source(folder), address)
    with Connection(address) as connection, pytest.raises(InputError, match="no published version"):
        current(connection, Tables(address))


def test_a_second_writer_is_refused_while_the_first_is_at_work(folder, address):
    with Lease(Tables(address)):
        with pytest.raises(InputError, match=r"being changed by another process.*in \d+ s"):
            push(source(folder), address)
        with pytest.raises(InputError, match="being changed"):
            remove(address, np.array([1]))
    remove(address, np.array([1]))


def test_of_two_writers_with_one_number_the_second_has_lost(address):
    tables = Tables(address)
    with Connection(address) as connection:
        served = current(connection, tables)
        won = publish(connection, tables, served, after=served)
        with pytest.raises(InputError, match="changed by another process"):
            publish(connection, tables, served, after=served)
        assert current(connection, tables) == won


def take_over(address, lease):
    """As another writer does once the lease has run out."""
    with Connection(address) as connection:
        connection.run(
            f"INSERT INTO {Tables(address).leases} (gallery, term, owner, until) "
            f"SELECT 'photos', {lease._term + 1}, 'other', now64(6) + toIntervalSecond(60)"
        )


@pytest.mark.parametrize("change", [
    lambda address, folder: push(source(folder), address),
    lambda address, folder: remove(address, np.array([1])),
    lambda address, folder: remove_keys(address, ["key-1"]),
    lambda address, folder: compact(address),
    lambda address, folder: rollback(address),
])  # fmt: skip
def test_a_writer_whose_lease_was_taken_over_publishes_nothing(folder, address, monkeypatch, change):
    before = remove(address, np.array([0]))  # so that there is something to compact and to take back
    begin, check = Lease.__enter__, Lease.check

    def begun(lease):
        begin(lease)
        monkeypatch.setattr(Lease, "check", lambda _: (take_over(address, lease), check(lease)))
        return lease

    monkeypatch.setattr(Lease, "__enter__", begun)
    with pytest.raises(InputError, match="being changed by another process: do it again"):
        change(address, folder)
    with Connection(address) as connection:
        assert current(connection, Tables(address)) == before


def test_a_writer_whose_lease_was_taken_over_sends_nothing(tmp_path, address, monkeypatch):
    begin, sent, insert = Lease.__enter__, [], Connection.insert

    def begun(lease):
        begin(lease)
        take_over(address, lease)
        return lease

    monkeypatch.setattr(Lease, "__enter__", begun)
    monkeypatch.setattr(Connection, "insert", lambda *given, **named: sent.append(1) or insert(*given, **named))
    with pytest.raises(InputError, match="being changed by another process: do it again"):
        push(other_gallery(tmp_path / "other", np.arange(2000, 2010)), address, append=True)
    assert sent == []


def test_a_lease_is_extended_for_as_long_as_the_writer_works(address, monkeypatch):
    monkeypatch.setattr(lease_module, "_RENEWED_AFTER", 0.01)
    tables = Tables(address)
    with Lease(tables) as lease, Connection(address) as connection:
        end = time.monotonic() + 60
        while connection.value(f"SELECT count() FROM {tables.leases} WHERE term = {lease._term}") < 3:
            assert time.monotonic() < end
        lease.check()
    assert not lease._keeper.is_alive()


def test_galleries_of_other_models_are_refused(folder, address):
    for changed, reason in (({"fingerprint": "0" * 64}, "its fingerprint is"), ({"bits": 63}, "64 bits, not 63")):
        with pytest.raises(InputError, match=f"belongs to another model.*{reason}"):
            push(dataclasses.replace(source(folder), **changed), address)
    with pytest.raises(InputError, match="other metadata columns"):
        push(dataclasses.replace(source(folder), kinds={"price": "Int64"}), address)


def test_ids_are_unique_and_never_come_back(tmp_path, folder, address):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def table(ids):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        codes = pa.array([row.tobytes() for row in uniform_codes(len(ids), 64, 3)])
        parquet.write_table(pa.table({"id": ids, "key": [str(each) for each in ids], "code": codes}), path)
        return source_of_parquet(path, (), 64, F)

    with pytest.raises(InputError, match="ids more than once, such as 7"):
        push(table([2000, 7]), address, append=True)
    version, _ = push(table([2000, 3000]), address, append=True)
    assert (version.count, version.next_id) == (COUNT + 2, 3001)
    assert remove(address, np.array([3000])).next_id == 3001
    assert push(source(folder), address)[0].next_id == 3001
    for ids, reason in (([-1], "negative"), ([2**63], "too large")):
        with pytest.raises(InputError, match=reason):
            push(table(np.array(ids, np.uint64 if ids[0] > 0 else np.int64)), address)


def test_texts_may_be_categories_and_are_utf_8(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    codes = pa.array([bytes(8)] * 3)

    def pushed(colours):
        parquet.write_table(pa.table({"id": [0, 1, 2], "code": codes, "colour": colours}), tmp_path / "t.parquet")
        (segment,) = source_of_parquet(tmp_path / "t.parquet", ("colour",), 64, F).segments
        (block,) = segment.blocks
        return block.columns["colour"].to_pylist()

    assert pushed(pa.array(["red", "blue", "red"]).dictionary_encode()) == ["red", "blue", "red"]
    offsets, text = np.array([0, 1, 2, 3], np.int32), b"a\xffb"
    broken = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    with pytest.raises(InputError, match=r"t\.parquet: column 'colour' is damaged: .*UTF"):
        pushed(broken)


def test_a_name_of_a_column_is_no_sql(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    name = "x String) ENGINE = MergeTree ORDER BY id AS SELECT 1 -- "
    parquet.write_table(pa.table({"id": [1], "code": [bytes(8)], name: ["a"]}), tmp_path / "codes.parquet")
    with pytest.raises(InputError, match="a name has at most 64 letters, digits and _"):
        source_of_parquet(tmp_path / "codes.parquet", (name,), 64, F)


def other_gallery(folder, ids, removed=()):
    gallery.build(
        folder, uniform_codes(len(ids), 64, 4), ids, [f"other-{each}" for each in ids], bits=64, fingerprint=F
    )
    if len(removed):
        gallery.remove(folder, np.array(removed))
    return source(folder)


def test_a_gallery_with_ids_that_are_there_is_not_appended(tmp_path, address):
    with pytest.raises(InputError, match="ids more than once, such as 998, 999"):
        push(other_gallery(tmp_path / "other", np.arange(998, 1010)), address, append=True)
    assert open_remote(address).count == COUNT


def test_what_either_gallery_has_removed_stays_removed_after_an_append(tmp_path, address):
    remove(address, np.array([7]))
    version, _ = push(other_gallery(tmp_path / "other", np.arange(2000, 2010), [2003, 2004]), address, append=True)
    assert (version.count, version.removed_count) == (COUNT + 7, 3)
    assert {7, 2003, 2004}.isdisjoint(pull(address)[0].ids.tolist())


def test_what_was_removed_from_parts_that_are_there_is_removed_by_an_append_too(folder, address):
    gallery.remove(folder, np.arange(5))
    remove(address, np.array([3, 900]))  # one of them as there, one here alone
    gallery.append(folder, uniform_codes(20, 64, 9), None, [f"new-{number}" for number in range(20)])
    version, _ = push(source(folder), address, append=True)
    assert (version.count, version.removed_count) == (COUNT + 20 - 6, 6)
    assert {*range(5), 900}.isdisjoint(pull(address)[0].ids.tolist())
    assert push(source(folder), address, append=True)[0].removed_count == 6


def test_a_file_that_changes_while_it_is_pushed_does_not_touch_what_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 100)
    address, path = clickhouse_world.address(), tmp_path / "codes.parquet"

    def write(seed):
        codes = pa.array([row.tobytes() for row in uniform_codes(COUNT, 64, seed)])
        parquet.write_table(pa.table({"id": np.arange(COUNT), "code": codes}), tmp_path / "new")
        (tmp_path / "new").rename(path)

    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write(1)
    push(source_of_parquet(path, (), 64, F), address)
    again = source_of_parquet(path, (), 64, F)
    write(2)
    with pytest.raises(InputError, match="was changed while it was read"):
        push(again, address)
    np.testing.assert_array_equal(pull(address)[0].codes, uniform_codes(COUNT, 64, 1))


def test_tables_of_other_columns_are_named(folder, address):
    unfinished = clickhouse_world.address()
    with Connection(unfinished) as connection:
        for statement in Tables(unfinished).statements(32, {"price": "Int64"}):
            connection.run(statement)
        connection.run(f"ALTER TABLE {unfinished.database}.codes_photos DROP COLUMN block")
        with pytest.raises(
            InputError, match=r"a table there has other columns.*`block`.*drop it, or use another name$"
        ):
            push(source(folder), unfinished)


def test_rows_deleted_by_hand_are_given_as_a_reason(folder, address):
    with Connection(address) as connection:
        connection.run(f"DELETE FROM {address.database}.galleries WHERE gallery = 'photos'")
    with pytest.raises(InputError, match=r"deleted by hand.*push under another name"):
        push(source(folder), address)


def test_a_gallery_whose_tables_were_dropped_is_pushed_again(folder, address):
    with Connection(address) as connection:  # as docs/scale.md says
        for table in ("codes_photos", "removed_photos"):
            connection.run(f"DROP TABLE {address.database}.{table} SYNC")
    version, sent = push(source(folder), address)
    assert (version.number, sent) == (2, COUNT)


def test_a_pulled_gallery_is_the_one_that_was_pushed(folder, address):
    contents, version = pull(address)
    expected = gallery.open_current(folder).contents()
    np.testing.assert_array_equal(contents.ids, expected.ids)
    np.testing.assert_array_equal(contents.codes, expected.codes)
    assert list(contents.keys) == list(expected.keys)
    assert version.count == COUNT


def test_an_empty_gallery_can_be_pushed_pulled_and_compacted(tmp_path):
    address = clickhouse_world.address()
    gallery.build(tmp_path / "g", np.empty((0, 8), np.uint8), None, None, bits=64, fingerprint=F)
    push(source(tmp_path / "g"), address)
    assert pull(address)[0].codes.shape == (0, 8)
    assert compact(address).count == 0


def test_removal_by_id_and_key_and_its_rollback(address):
    with pytest.raises(InputError, match="no key nobody"):
        remove_keys(address, ["key-8", "nobody"])
    with pytest.raises(InputError, match="has no id 5000"):
        remove(address, np.array([5, 5000]))
    first = remove(address, np.array([5, 8, 5]))
    second = remove_keys(address, ["key-9"])
    assert (first.count, second.count) == (COUNT - 2, COUNT - 3)
    with pytest.raises(InputError, match="has no id 5"):
        remove(address, np.array([5]))
    with pytest.raises(InputError, match="no key key-5"):
        remove_keys(address, ["key-5"])
    first = rollback(address)
    assert (first.count, first.next_id) == (COUNT - 2, second.next_id)
    back = rollback(address)
    assert (back.count, back.number) == (COUNT, 5)
    with pytest.raises(InputError, match="no whole version before"):
        rollback(address)


def test_what_was_taken_back_before_is_not_published_by_a_later_rollback(address):
    good = remove(address, np.array([5]))
    remove(address, np.array([6, 7]))
    assert rollback(address).count == good.count
    remove(address, np.array([8]))
    assert rollback(address).count == good.count
    assert rollback(address).count == COUNT


def test_keys_are_looked_up_only_when_no_other_writer_is_at_work(tmp_path, address, monkeypatch):
    begin = Lease.__enter__

    def after_another(lease):
        monkeypatch.undo()
        push(other_gallery(tmp_path / "other", np.arange(3000, 3002)), address)
        return begin(lease)

    monkeypatch.setattr(Lease, "__enter__", after_another)
    with pytest.raises(InputError, match="no key key-1"):
        remove_keys(address, ["key-1"])


def test_a_rolled_back_or_pulled_gallery_gives_no_id_out_twice(tmp_path, address):
    push(other_gallery(tmp_path / "other", np.arange(2000, 2010)), address, append=True)
    back = rollback(address)
    assert (back.count, back.next_id) == (COUNT, 2010)


def test_an_id_that_was_taken_back_before_a_push_does_not_come_back(folder, address):
    gallery.append(folder, uniform_codes(5, 64, 9), None, [f"new-{number}" for number in range(5)])
    gallery.rollback(folder)
    assert push(source(folder), address)[0].next_id == COUNT + 5


def test_as_many_keys_as_there_are_can_be_looked_up(address, monkeypatch):
    keys = [f"key-{number}" for number in range(COUNT)]
    monkeypatch.setattr(changes, "_QUERY_BYTES", 1000)  # beside the list, which is longer than a server's limit
    monkeypatch.setattr(Connection, "_settings", small_queries(Connection._settings))
    with pytest.raises(InputError, match="is not text"):
        remove_keys(address, ["key-1", "\udcff"])
    assert remove_keys(address, keys).count == 0


def small_queries(settings):
    """As on a server that takes statements of 8 KiB unless told otherwise."""
    return lambda self, **own: settings(self, **({"max_query_size": 8192} | own))


def test_much_removal_compacts(address):
    version = remove(address, np.arange(0, COUNT, 2))
    assert (version.count, version.removed_count, [each.count for each in version.segments]) == (500, 0, [500])
    assert list(pull(address)[0].ids) == list(range(1, COUNT, 2))


def test_what_no_version_needs_any_more_is_swept_after_its_time(folder, address, monkeypatch):
    tables = Tables(address)

    def segments():
        with Connection(address) as connection:
            return connection.value(f"SELECT uniq(segment) FROM {tables.codes}")

    def replaced(seed):
        gallery.build(folder, uniform_codes(10, 64, seed), None, None, bits=64, fingerprint=F, overwrite=True)
        return push(source(folder), address)

    for seed in range(3):
        replaced(seed)
    assert segments() == 4  # readers may still be at the old ones
    monkeypatch.setattr(catalogue, "GRACE_SECONDS", -1)
    replaced(9)
    assert segments() == 2
