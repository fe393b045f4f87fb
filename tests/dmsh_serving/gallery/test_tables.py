import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.gallery import tables
from dmsh_serving.gallery import tables as gallery_table
from dmsh_serving.gallery.changes import append, build, remove
from dmsh_serving.gallery.folder import open_current
from dmsh_serving.gallery.tables import parquet_space, read_table, shard_paths, write_parquet

F = "f" * 64


def codes_of(count, width=2):
    return np.random.default_rng(0).integers(0, 256, (count, width), dtype=np.uint8)


CODES = codes_of(5)
ROWS = [row.tobytes() for row in CODES]


@pytest.fixture
def written(tmp_path):
    def write(**columns):
        parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    return write


def test_what_a_schema_says_in_no_text_is_no_fingerprint(tmp_path):
    said = {b"dmsh.fingerprint": b"\xff" * 64, b"dmsh.bits": b"16", b"\xff dmsh": b"of another tool"}
    parquet.write_table(pa.table({"code": ROWS}).replace_schema_metadata(said), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").fingerprint == "\N{REPLACEMENT CHARACTER}" * 64


@given(st.lists(st.text(), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_any_strings_are_keys_and_come_back_through_parquet(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("t")
    codes = codes_of(len(keys))
    build(folder / "g", codes, None, keys, bits=16, fingerprint=F)
    write_parquet(folder / "t.parquet", open_current(folder / "g"))
    table = read_table(folder / "t.parquet")
    assert list(table.keys) == keys
    np.testing.assert_array_equal(table.codes, codes)
    assert (table.ids.tolist(), table.bits, table.fingerprint) == (list(range(len(keys))), 16, F)
    again = build(folder / "again", table.codes, table.ids, table.keys, bits=16, fingerprint=F)
    assert list(again.contents().keys) == keys


def test_a_gallery_of_parts_is_exported_in_the_order_of_its_ids(tmp_path):
    build(tmp_path / "g", CODES, np.array([2, 4, 6, 8, 10]), list("abcde"), bits=16, fingerprint=F)
    append(tmp_path / "g", CODES[:1], np.array([5]), ["f"])
    remove(tmp_path / "g", np.array([4]))
    write_parquet(tmp_path / "t.parquet", open_current(tmp_path / "g"))
    table = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert table == {
        "id": [2, 5, 6, 8, 10],
        "key": list("afcde"),
        "code": [ROWS[0], ROWS[0], *ROWS[2:]],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "t.parquet"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(ROWS, pa.binary(2)),
        pa.array(ROWS, pa.binary()),
        pa.array(ROWS, pa.large_binary()),
        pa.array(ROWS, pa.binary()).dictionary_encode(),
        pa.array(CODES.tolist(), pa.list_(pa.uint8())),
        pa.array(CODES.tolist(), pa.large_list(pa.uint8())),
        pa.array(CODES.tolist(), pa.list_(pa.uint8(), 2)),
        pa.chunked_array([pa.array(ROWS[:2], pa.binary(2)), pa.array(ROWS[2:], pa.binary(2))]),
    ],
    ids=lambda column: str(column.type),
)
def test_codes_are_read_from_every_type_that_can_hold_them(written, column):
    table = read_table(written(code=column, other=pa.array(["x"] * 5)))
    np.testing.assert_array_equal(table.codes, CODES)
    assert (table.ids, table.keys, table.bits, table.fingerprint) == (None, None, None, None)


@pytest.mark.parametrize("chunk", [["a"], [b"a"], pa.array([[1]], pa.list_(pa.uint8()))])
def test_values_of_several_chunks_may_have_over_2_gib_together(chunk):
    whole = tables._one_array(pa, pa.chunked_array([pa.array(chunk), pa.array(chunk)]))
    assert str(whole.type).startswith("large_")
    assert whole.to_pylist() == 2 * pa.array(chunk).to_pylist()


def test_codes_of_a_slice_are_those_of_its_rows():
    whole = pa.array(ROWS, pa.binary(2))
    np.testing.assert_array_equal(gallery_table._codes(pa, "t", whole[3:5]), CODES[3:5])


def test_columns_beside_the_codes_are_told_by_kind(written):
    columns = {
        "key": ["a", "b"],
        "id": [1, 2],
        "colour": ["x", "y"],
        "size": [1, 2],
        "weight": [0.5, 1],
        "on": [True] * 2,
    }
    space = parquet_space(written(code=pa.array(ROWS[:2]), **columns))
    assert space.kinds == {"colour": "String", "size": "Int64", "weight": "Float64"}


def test_files_of_codes_are_all_there_or_it_is_said_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"holds no codes-\*\.parquet"):
        shard_paths(tmp_path)
    for number in (0, 2):
        (tmp_path / f"codes-{number:05d}-of-00003.parquet").touch()
    with pytest.raises(InputError, match="has 2 of 3 files of codes"):
        shard_paths(tmp_path)
    (tmp_path / "codes-00001-of-00003.parquet").touch()
    assert [path.name[6:11] for path in shard_paths(tmp_path)] == ["00000", "00001", "00002"]


def test_a_table_without_rows_has_no_codes(written):
    assert read_table(written(code=pa.array([], pa.list_(pa.uint8())))).codes.shape == (0, 0)
    assert len(read_table(written(code=pa.array([], pa.binary(2)), key=pa.array([], pa.string()))).keys) == 0


def test_rows_come_in_blocks_whatever_the_groups_of_the_file(tmp_path):
    table = pa.table({"code": pa.array(ROWS), "number": range(5)})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    blocks = list(gallery_table.iter_parquet(tmp_path / "t.parquet", ("number",), 3))
    np.testing.assert_array_equal(blocks[0][0].codes, CODES[:3])
    np.testing.assert_array_equal(blocks[1][0].codes, CODES[3:])
    assert [columns["number"].to_pylist() for _, columns in blocks] == [[0, 1, 2], [3, 4]]


def test_codes_are_read_from_npy(tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    np.testing.assert_array_equal(read_table(tmp_path / "codes.npy").codes, CODES)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"codes": pa.array(ROWS)}, "has no column 'code': it has codes"),
        ({"code": pa.array([1, 2])}, "column 'code' is int64, expected binary values or lists of uint8"),
        ({"code": pa.array([[1], [2]])}, "column 'code' is list<.*int64>, expected"),
        ({"code": pa.array([b"ab", None])}, "1 values of column 'code' are missing"),
        ({"code": pa.array([b"ab", b"cd", b"e"])}, "the code of row 2 has 1 bytes, that of row 0 has 2"),
        ({"code": pa.array(ROWS), "id": pa.array([1.0] * 5)}, "column 'id' is double, expected integers"),
        ({"code": pa.array(ROWS), "key": pa.array([1] * 5)}, "column 'key' is int64, expected strings"),
        ({"code": pa.array([b"ab"]), "key": pa.array([b"\xff"]).view(pa.string())}, "not valid text"),
    ],
)
def test_a_column_that_holds_something_else_is_named(written, columns, message):
    with pytest.raises(InputError, match=message):
        read_table(written(**columns))


def test_files_of_codes_that_are_written_anew_while_they_are_read_are_refused(tmp_path, monkeypatch):
    snapshot = build(tmp_path / "g", CODES, None, list(map(str, range(len(CODES)))), bits=16, fingerprint=F)
    parts = [tmp_path / f"codes-0000{number}-of-00002.parquet" for number in range(2)]
    for part in parts:
        write_parquet(part, snapshot)
    read = tables._read_parquet

    def slowly(path):
        table = read(path)
        if path == parts[0]:
            write_parquet(parts[1], snapshot)
        return table

    monkeypatch.setattr(tables, "_read_parquet", slowly)
    with pytest.raises(InputError, match="was changed while it was read: read it again once encode has ended"):
        read_table(tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(ROWS)] * 2, ["code", "code"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="has more than one column 'code'"):
        read_table(tmp_path / "t.parquet")


def test_files_that_are_none_are_refused(tmp_path, monkeypatch):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    for name, message in (("bad.parquet", "is not a Parquet file"), ("none.parquet", "does not exist")):
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / name)
    snapshot = build(tmp_path / "g", CODES, None, None, bits=16, fingerprint=F)
    with pytest.raises(InputError, match="is not a folder"):
        write_parquet(tmp_path / "no" / "t.parquet", snapshot)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingError, match=r"pip install 'dmsh-toolkit\[parquet\]'"):
        read_table(tmp_path / "bad.parquet")


def test_a_disk_that_fills_up_is_reported_with_the_file_that_did_not_fit(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("480000 requested and 102272 written")  # as NumPy says it

    monkeypatch.setattr(gallery_table.np, "save", full)
    with pytest.raises(OSError, match=r"102272 written.*codes\.npy"):
        gallery_table.write_npy(tmp_path / "codes.npy", CODES)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "codes.npy").write_text("old")
    with pytest.raises(ValueError, match="Object arrays"):
        gallery_table.write_npy(tmp_path / "codes.npy", np.array([object()]))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"codes.npy": "old"}
