import pickle

from dmsh_export.encode.sources import _Objects


def test_a_worker_encodes_the_objects_that_were_listed_not_those_that_it_would_list():
    source = _Objects("s3://bucket/prefix")
    source.__dict__["_objects"] = [("a.png", 10, 1), ("b.png", 20, 2)]
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.count, sent.digest(0, 2)) == (2, source.digest(0, 2))
    assert "_place" not in sent.__dict__  # a connection does not travel
