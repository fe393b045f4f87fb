"""The comparison with perf_analyzer: what it is given and what is read of it."""

import json

import numpy as np
import pytest
from benchmarks.load import __main__ as compared
from benchmarks.load.__main__ import Figures, Row

CSV = """Concurrency,Inferences/Second,Client Send,Network,p50 latency,p90 latency,p95 latency,p99 latency
1,250.5,12,400,3900,4100,4200,5000
"""


def test_what_perf_analyzer_writes_is_read_in_milliseconds():
    assert compared.figures_of_csv(CSV) == Figures(250.5, 3.9, 4.1)


def test_it_is_given_the_images_and_k_of_each_request():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    first, second = json.loads(compared.input_data(images))["data"]
    assert (first["image"]["shape"], second["k"]) == ([4, 4, 3], [10])
    assert second["image"]["content"] == images[1].ravel().tolist()


def test_the_median_is_of_each_figure():
    assert Figures.median([Figures(1, 5, 9), Figures(3, 4, 8), Figures(2, 6, 7)]) == Figures(2, 5, 8)


def test_a_difference_is_ours_over_theirs():
    row = Row("demo", "1 client", Figures(105, 1.0, 2.0), Figures(100, 2.0, 2.0))
    assert row.differences == pytest.approx({"requests_per_s": 0.05, "p50_ms": -0.5, "p90_ms": 0.0})
    heads, cells = compared.markdown([row])
    assert len(heads) == len(cells)
    assert cells[4] == "+5.0%"
