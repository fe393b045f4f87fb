import os
import pickle

import pytest

from dmsh_export.encode.sources import _Folder, _Objects, _Table


def test_a_worker_encodes_the_objects_that_were_listed_not_those_that_it_would_list():
    source = objects("s3://bucket/prefix")
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.count, sent.digest(0, 2)) == (2, source.digest(0, 2))
    assert "_place" not in sent.__dict__  # a connection does not travel


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
