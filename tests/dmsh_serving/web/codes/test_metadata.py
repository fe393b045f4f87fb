"""A table beside the gallery: read, matched by key, counted."""

import tracemalloc

import numpy as np
import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.gallery.keys import packed_keys
from dmsh_serving.web.codes.collection import Collection
from dmsh_serving.web.codes.metadata import MOST_VALUES, SHOWN_VALUES, Metadata

KEYS = ["a.png", "b,c.png", "d.png", "e.png"]


def collection(keys=KEYS, version="v"):
    codes = np.zeros((len(keys), 1), np.uint8)
    return Collection(version, 8, "f", np.arange(len(keys)), codes, packed_keys(keys))


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('\ufeffkey,colour,size\na.png,red,1\n"b,c.png",blue,1\n\nd.png,red,2\nunknown.png,green,2\n')
    return path


def test_csv_and_parquet_say_the_same(csv):
    import pyarrow
    from pyarrow import parquet

    table = {
        "key": ["a.png", "b,c.png", "d.png", "unknown.png"],
        "colour": ["red", "blue", "red", "green"],
        "size": [1, 1, 2, 2],
    }
    parquet.write_table(pyarrow.table(table), csv.with_suffix(".parquet"))
    for metadata in (Metadata(csv), Metadata(csv.with_suffix(".parquet"))):
        assert metadata.attributes("b,c.png") == {"colour": "blue", "size": "1"}
        assert metadata.attributes("e.png") == {}
        assert metadata.places(collection(), (("colour", ("red",)),)).tolist() == [0, 2]
        assert metadata.places(collection(), (("colour", ("red", "blue")), ("size", ("1",)))).tolist() == [0, 1]
        assert metadata.places(collection(), (("colour", ("green", "no such")),)).tolist() == []


def test_readers_in_several_versions_do_not_make_the_keys_matched_each_time(csv, monkeypatch):
    metadata = Metadata(csv)
    versions = [collection(KEYS[number:], str(number)) for number in range(3)]
    found = [metadata.places(each, (("colour", ("red",)),)).tolist() for each in versions]
    assert found == [[0, 2], [1], [0]]
    monkeypatch.setattr(metadata, "_rows", None)
    assert [metadata.places(each, (("colour", ("red",)),)).tolist() for each in versions] == found
    monkeypatch.undo()
    metadata.places(collection(KEYS[3:], "3"), (("colour", ("red",)),))
    assert [*metadata._matched] == ["1", "2", "3"]


def test_a_value_is_counted_as_if_only_the_other_columns_were_chosen(csv):
    colour, size = Metadata(csv).counts(collection(), (("size", ("1",)),))
    assert colour == {
        "name": "colour",
        "values": [{"value": "blue", "count": 1}, {"value": "red", "count": 1}, {"value": "green", "count": 0}],
        "others": 0,
    }
    assert size["values"] == [{"value": "1", "count": 2}, {"value": "2", "count": 1}]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_rows_has_filters_without_values(tmp_path, kind):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        path.write_text("key,colour\n")
    else:
        parquet.write_table(
            pyarrow.table({"key": pyarrow.array([], "string"), "colour": pyarrow.array([], "string")}), path
        )
    metadata, red = Metadata(path), (("colour", ("red",)),)
    for where in ((), red):
        assert metadata.counts(collection(), where) == [{"name": "colour", "values": [], "others": 0}]
    assert metadata.places(collection(), red).tolist() == []
    assert metadata.attributes("a.png") == {}


def test_only_columns_with_few_values_are_filters_and_a_chosen_value_is_always_shown(tmp_path):
    path = tmp_path / "table.csv"
    keys = [f"{number}.png" for number in range(2 * MOST_VALUES)]
    path.write_text("key,all,half\n" + "".join(f"{key},{n},{n % (2 * SHOWN_VALUES)}\n" for n, key in enumerate(keys)))
    metadata = Metadata(path)
    (half,) = metadata.counts(collection(keys), ())
    assert (half["name"], len(half["values"]), half["others"]) == ("half", SHOWN_VALUES, SHOWN_VALUES)
    hidden = str(2 * SHOWN_VALUES - 1)
    (half,) = metadata.counts(collection(keys), (("half", (hidden,)),))
    assert hidden in [each["value"] for each in half["values"]]
    assert metadata.attributes("7.png") == {"all": "7", "half": "7"}
    with pytest.raises(InputError, match="'all' is no filter: there are 'half'"):
        metadata.places(collection(keys), (("all", ("7",)),))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "name,colour\na,b\n", "no column 'key'"),
        ("t.csv", "key,colour\na,b\na,c\n", "more than one row with the key 'a'"),
        ("t.csv", "key,colour\na\n", "line 2: 1 values, the first line has 2"),
        ("t.csv", "key,x,x\na,b,c\n", "the column 'x' twice"),
        ("t.csv", b"key\n\xff\n", "not CSV in UTF-8"),
        ("t.parquet", "no", "not a Parquet file"),
        ("t.txt", "key\n", "ends with .parquet or .csv"),
        ("t.csv", None, "is not a file"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said):
        Metadata(path)


def test_keys_that_are_bytes_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"key": [b"a.png"], "size": [7]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: column 'key' holds bytes"):
        Metadata(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("kind", "values", "stored"),
    [
        (lambda pa: pa.timestamp("us", tz="Foo/Bar"), [7, 8], "int64"),
        (lambda pa: pa.date32(), [0, 2**30], "int32"),
        (lambda pa: pa.string(), [b"a", b"\xff"], "binary"),
    ],
    ids=["zone", "date", "text"],
)
def test_a_column_without_a_text_for_each_value_is_named(tmp_path, kind, values, stored):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array(values, stored).view(kind(pyarrow))
    parquet.write_table(pyarrow.table({"key": ["a", "b"], "odd": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: column 'odd' \(.*\) has no text for each value: "):
        Metadata(tmp_path / "t.parquet")


def test_the_memory_of_a_filter_is_that_of_its_values_also_if_one_is_long(csv):
    metadata, values = Metadata(csv), ("red", "a" * 10_000, *map(str, range(5_000)))
    tracemalloc.start()
    try:
        assert metadata.places(collection(), (("colour", values),)).tolist() == [0, 2]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20  # padded to the longest, 200 MB
    finally:
        tracemalloc.stop()
