import numpy as np
import pytest

from dmsh_model.evaluation.pairs import measure_pairs, pairs_by_name, pairs_of_csv
from dmsh_serving.errors import InputError

DATABASE = np.array([[0b00000000], [0b00000001], [0b00000011], [0b00000001]], np.uint8)


def test_ranks_are_in_the_order_of_distance_then_row():
    queries = np.array([[0b00000001], [0b00000001], [0b11111111]], np.uint8)
    found = measure_pairs(queries, DATABASE, [(0, [3]), (1, [0, 2]), (2, [0])], ks=[1, 2, 3, 9])
    # Query 0: rows 1, 3, 0, 2. Query 1: its nearer partner is row 0, by row. Query 2: rows 2, 1, 3, 0.
    assert found.recall == {1: 0, 2: 1 / 3, 3: 2 / 3, 9: 1}
    assert found.mean_reciprocal_rank == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert (found.queries, found.database) == (3, 4)


def test_measures_are_those_of_a_slow_obvious_ranking():
    random = np.random.default_rng(0)
    queries, database = (random.integers(0, 16, (count, 2), np.uint8) for count in (30, 90))
    pairs = [(row, random.choice(90, random.integers(1, 4), replace=False).tolist()) for row in range(30)]
    ranks = []
    for query, partners in pairs:
        distances = np.unpackbits(queries[query] ^ database, axis=1).sum(1)
        order = sorted(range(90), key=lambda row, d=distances: (d[row], row))
        ranks.append(1 + min(order.index(partner) for partner in partners))
    found = measure_pairs(queries, database, pairs)
    assert found.recall == {k: np.mean(np.array(ranks) <= k) for k in (1, 10, 100)}
    assert found.mean_reciprocal_rank == pytest.approx(np.mean(1 / np.array(ranks)))


def test_names_pair_without_their_endings():
    assert pairs_by_name(["a/x.jpg", "a/y.jpg", "z.png"], ["a/x.png", "b/x.png", "a/x.webp", "z.png"]) == [
        (0, [0, 2]),
        (2, [3]),
    ]
    numbered = ["scan.0001", "scan.0002", "scan.0003.JPG"]
    assert pairs_by_name(numbered, numbered) == [(0, [0]), (1, [1]), (2, [2])]
    with pytest.raises(InputError, match=r"no query has the name of a database image: queries are a\.png; the"):
        pairs_by_name(["a.png"], ["b.png"])


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # of a spreadsheet's "CSV UTF-8"
def test_a_csv_names_the_pairs(tmp_path, mark):
    file = tmp_path / "pairs.csv"
    file.write_text(f"{mark}query,database\na.png,c.png\na.png,b.png\n\nb.png,b.png\n")
    assert pairs_of_csv(file, ["a.png", "b.png"], ["b.png", "c.png"]) == [(0, [1, 0]), (1, [0])]


BAD = {
    "columns": ("a.png\n", "line 1: 1 columns, two are needed"),
    "query": ("c.png,b.png\n", "line 1: c.png is not among the queries"),
    "partner": ("a.png,b.png\na.png,a.png\n", "line 2: a.png is not among the database"),
    "nothing": ("query,database\n", "holds no pairs"),
    "no text": (b"\xff\xfe\x00", "is not a CSV file"),
    "absent": (None, "does not exist"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_csv_that_names_no_pairs_is_refused(tmp_path, content, message):
    file = tmp_path / "pairs.csv"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        pairs_of_csv(file, ["a.png"], ["b.png"])


def test_a_rank_below_1_is_refused():
    with pytest.raises(InputError, match="topk = 0 must be at least 1"):
        measure_pairs(DATABASE, DATABASE, [(0, [0])], ks=[0])


def test_a_database_may_be_larger_than_a_search_may_answer():
    database = np.zeros((20_000, 2), np.uint8)
    database[:15_000] = 1  # a bit nearer than the partner in each byte
    found = measure_pairs(np.array([[1, 1]], np.uint8), database, [(0, [19_000])], ks=[1, 19_000, 19_001])
    assert found.recall == {1: 0.0, 19_000: 0.0, 19_001: 1.0}
    with pytest.raises(InputError, match="queries have 2 bytes per code, the database 1"):
        measure_pairs(np.array([[1, 1]], np.uint8), database[:, :1], [(0, [0])])
