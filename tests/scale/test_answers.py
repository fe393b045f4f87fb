"""A folder, one ClickHouse and the plan over two shards give the same answers, at length and by random histories."""

import dataclasses
import shutil

import clickhouse_world
import numpy as np
import pytest
from clickhouse_world import F
from hypothesis import given, settings
from hypothesis import strategies as st
from project import ROOT

from dmsh_export.encode.run import encode, on_processes
from dmsh_serving import gallery
from dmsh_serving.clickhouse.connection import Connection
from dmsh_serving.clickhouse.push import push
from dmsh_serving.clickhouse.rows import source_of_gallery
from dmsh_serving.clickhouse.schema import Tables
from dmsh_serving.clickhouse.search import RemoteVersion, open_remote
from dmsh_serving.codes import uniform_codes
from dmsh_serving.contract import MAX_K
from dmsh_serving.gallery.tables import read_table


def two_shards(address):
    tables = Tables(address)
    both = dataclasses.replace(
        tables, source=f"remote('127.0.0.1,localhost', {tables.codes})", share="id % 2 = shardNum() - 1"
    )
    version = RemoteVersion.__new__(RemoteVersion)
    version.__dict__.update(open_remote(address, connection=Connection(address)).__dict__, _tables=both)
    return version


def engines(folder, address):
    push(source_of_gallery(folder, gallery.open_current(folder)), address)
    return gallery.open_current(folder), open_remote(address), two_shards(address)


def assert_alike(found, queries, k, **asked):
    first, *others = [engine.search(queries, k, **asked) for engine in found]
    for other in others:
        np.testing.assert_array_equal(other.ids, first.ids)
        np.testing.assert_array_equal(other.distances, first.distances)


@pytest.mark.parametrize("bits", [1, 16, 64, 128, 250, 1024])
def test_every_width_every_k(tmp_path, bits):
    codes = uniform_codes(300, bits, bits)[np.random.default_rng(bits).integers(0, 300, 20_000)]
    gallery.build(tmp_path / "g", codes, None, None, bits=bits, fingerprint=F)
    found = engines(tmp_path / "g", clickhouse_world.address())
    queries = np.concatenate([codes[:2], uniform_codes(2, bits, 99)])
    for k in (1, 100, 5000, MAX_K):
        assert_alike(found, queries, k)
    assert_alike(found, queries, 1000, radius=bits // 3)
    assert_alike(found, queries, 1000, allowed=np.arange(0, 20_000, 3))


def test_a_million_codes_with_thousands_of_ties(tmp_path):
    codes = uniform_codes(400, 64, 1)[np.random.default_rng(1).integers(0, 400, 1_000_000)]
    gallery.build(tmp_path / "g", codes, None, None, bits=64, fingerprint=F)
    found = engines(tmp_path / "g", clickhouse_world.address())
    for k in (10, 1000, MAX_K):
        assert_alike(found, np.concatenate([codes[:2], uniform_codes(2, 64, 2)]), k)


def test_the_demos_queries(tmp_path):
    service = ROOT / "build/demo/service"
    if not (service / "gallery").is_dir():
        pytest.skip("there is no demo: make demo makes it")
    shutil.copytree(service / "gallery", tmp_path / "g")
    found = engines(tmp_path / "g", clickhouse_world.address())
    encode(service / "model.onnx", str(service.parent / "queries"), tmp_path / "codes", workers=1, engine=on_processes)
    queries = read_table(tmp_path / "codes").codes
    assert len(queries) > 100
    assert_alike(found, queries, 10)
    assert_alike(found, queries[:20], 3000)
    assert_alike(found, queries[:20], 100, radius=12)
    assert_alike(found, queries[:20], 100, allowed=np.arange(0, 2000, 5))


changes = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("remove"), st.integers(0, 10**6)),
        st.tuples(st.just("compact"), st.just(0)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12)
@given(changes, st.sampled_from([12, 64, 70]), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_any_history_gives_the_same_answers(tmp_path_factory, history, bits, k, seed):
    folder, random = tmp_path_factory.mktemp("g") / "g", np.random.default_rng(seed)
    few = uniform_codes(20, bits, seed)
    gallery.build(folder, few[random.integers(0, 20, 150)], None, None, bits=bits, fingerprint=F)
    address = clickhouse_world.address()
    for kind, number in history:
        ids = gallery.open_current(folder).ids
        if kind == "append":
            gallery.append(folder, few[random.integers(0, 20, number)], None, None)
        elif kind == "remove" and len(ids):
            gallery.remove(folder, random.choice(ids, min(len(ids), 1 + number % 30), replace=False))
        elif kind == "compact":
            gallery.compact(folder)
        found = engines(folder, address)
        assert_alike(found, few[:3], k)
        assert_alike(found, few[:3], k, radius=bits // 4)
        assert_alike(found, few[:3], k, allowed=random.integers(0, 300, 40))
