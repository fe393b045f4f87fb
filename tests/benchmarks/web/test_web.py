"""The page's benchmark: one short run with a real Triton and a real browser."""

import json
import re
from pathlib import Path

import pytest
from benchmarks.web import __main__ as bench_web
from benchmarks.web.visit import CHROMIUM
from project import ROOT

BENCH = bench_web.WebBench("a CPU", 0.5, 1000, 2.5, 1.9, {"decode": 0.5}, 120, 1000, 200, 300.4, 150.2, 99.6)


def test_the_page_s_own_files_stay_small():
    assert bench_web.own_kilobytes() < 150


def test_every_figure_reaches_the_table():
    table = bench_web.markdown(BENCH)
    for figure in (
        "2.50 ms",
        "decode 0.50 ms",
        "1.90 ms",
        "0.60 ms",
        "120 ms",
        "1,000",
        "200 MiB",
        "300 MiB",
        "100 MiB",
        "150 MiB",
        "100 KB",
    ):
        assert f"| {figure} |" in table
    assert {line.count("|") for line in table.splitlines()[2:]} == {4}


def test_the_docs_keep_a_place_for_it():
    assert re.search(r"<!-- web: begin -->.*<!-- web: end -->", (ROOT / "docs" / "web.md").read_text(), re.DOTALL)


@pytest.mark.live
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")
@pytest.mark.program
def test_a_short_run_measures_everything(tmp_path):
    bench_web.web(quick=True, page=None, json=tmp_path / "bench.json")
    found = json.loads(Path(tmp_path / "bench.json").read_text())
    assert found["scrolled"] == found["images"] == 1000
    assert 0 < found["page_mb"] < found["most_memory_mb"]
    assert 0 < found["memory_mb"] <= found["most_memory_mb"]
    assert all(found[name] > 0 for name in ("api_ms", "grpc_ms", "cards_ms"))
