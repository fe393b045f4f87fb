import os
import pickle

import pytest

from dmsh_export.encode.sources import _Folder, _Objects, _Table
from dmsh_serving.errors import InputError


def test_a_worker_encodes_the_objects_that_were_listed_not_those_that_it_would_list():
    source = objects("s3://bucket/prefix")
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.count, sent.digest(0, 2)) == (2, source.digest(0, 2))
    assert "_place" not in sent.__dict__  # a connection does not travel


@pytest.mark.parametrize("when", ["before a worker opens it", "while it is read", "never"])
def test_a_table_that_is_another_by_the_time_that_it_is_read_is_refused(tmp_path, when):
    import pyarrow as pa
    from pyarrow import parquet

    def write(count):
        parquet.write_table(pa.table({"image": [b"x"] * count}), tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / "t.parquet")

    write(6)
    source = _Table(tmp_path / "t.parquet")
    assert source.count == 6
    sent = pickle.loads(pickle.dumps(source))
    if when == "before a worker opens it":
        write(3)

    def read():
        found = []
        for image in sent.images(0, 6):
            if image.id == 2 and when == "while it is read":
                write(7)
            found.append(image)
        return found

    if when == "never":
        assert len(read()) == 6
    else:
        with pytest.raises(InputError, match=r"t\.parquet was changed while it was read: run it again"):
            read()


def test_a_link_that_leads_nowhere_is_an_image_that_is_gone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    source = _Folder(tmp_path)
    before = source.digest(0, 2)
    assert [image.data for image in source.images(0, 2)] == [b"x", "does not exist"]
    (tmp_path / "nowhere.png").write_bytes(b"y")
    assert source.digest(0, 2) != before


@pytest.mark.parametrize("kind", ["folder", "table", "objects"])
def test_images_of_another_place_are_others_though_names_sizes_and_times_are_the_same(tmp_path, monkeypatch, kind):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(name[:3].encode())
        os.utime(tmp_path / name / "x", ns=(1, 1))

    def source(place):
        if kind == "objects":
            return objects(f"s3://{place}")
        return _Folder(tmp_path / place) if kind == "folder" else _Table(tmp_path / place / "x")

    assert source("one").digest(0, 1) == source("one/").digest(0, 1) != source("other").digest(0, 1)
    (tmp_path / "link").symlink_to("one")
    assert kind == "objects" or source("link").digest(0, 1) == source("one").digest(0, 1)


def objects(address):
    source = _Objects(address)
    source.__dict__["_objects"] = [("a.png", 10, 1), ("b.png", 20, 2)]  # in place of a bucket's own list
    return source
