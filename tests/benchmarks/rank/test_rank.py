import json
import time

import numpy as np
import pytest
from benchmarks.rank import engines as rank_engines
from benchmarks.rank import timing as rank_timing
from benchmarks.rank.engines import Case
from benchmarks.rank.layouts import measure_layouts

from dmsh_serving.codes import uniform_codes
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.hamming.bare_pass import BarePass
from dmsh_serving.hamming.kernels.vectors import kernel_for


def test_uniform_codes_have_no_bits_beyond_their_width():
    codes = uniform_codes(1000, 12, seed=0)
    assert codes.shape == (1000, 2)
    assert not (codes[:, 1] & 0b1111).any()
    assert codes[:, 1].any()


@pytest.mark.parametrize("case", [Case(48, 3000, 40, 5, 1), Case(64, 3000, 1, 5, 2), Case(12, 3000, 2, 5, 1)])
def test_every_engine_finds_the_same_distances(case):
    pytest.importorskip("faiss")
    measured = rank_timing.measure(case, rounds=1)
    names = {timing.engine for timing in measured.timings}
    assert any(name.startswith(rank_engines.FAISS) for name in names)
    assert measured.milliseconds(rank_engines.OURS) > 0
    assert measured.gigabytes_per_s > 0


@pytest.mark.parametrize("bits", [8, 64, 256])
def test_a_bare_pass_computes_the_distances(bits):
    codes, queries = uniform_codes(192, bits, seed=5), uniform_codes(2, bits, seed=6)
    bare = BarePass(queries, codes)
    bare()
    expected = np.bitwise_count(queries[1] ^ codes).sum(axis=1)
    assert np.array_equal(bare.distances[0, :192], expected)


def test_two_threads_share_a_bare_pass_and_keep_their_buffers_apart():
    codes = np.zeros((200 * kernel_for(8).block, 8), np.uint8)
    bare = BarePass(~codes[:1], codes, threads=2)
    deadline = time.monotonic() + 10
    while not bare.distances.all():  # a helper that woke late takes part in a later pass
        assert time.monotonic() < deadline
        bare()
    assert (bare.distances == 64).all()


def test_several_threads_are_timed_beside_one_and_beside_a_bare_pass():
    measured = rank_timing.measure(Case(64, 3000, 1, 5, 2), rounds=1)
    assert measured.milliseconds(rank_engines.ALONE) > 0
    assert measured.milliseconds(rank_engines.BARE) > 0
    assert measured.milliseconds(rank_engines.BARE_ALONE) > 0


def test_an_engine_that_is_wrong_is_not_timed(monkeypatch):
    real = rank_engines.engines

    def with_a_wrong_one(case, queries, codes):
        return real(case, queries, codes) | {"wrong": lambda: np.zeros((1, 5), np.int32)}

    monkeypatch.setattr(rank_timing, "engines", with_a_wrong_one)
    with pytest.raises(CheckError, match="wrong and dmsh disagree"):
        rank_timing.measure(Case(64, 3000, 1, 5, 1), rounds=1)


def test_layouts_are_timed_on_equal_answers():
    codes = np.repeat(uniform_codes(50, 64, seed=3), 500, axis=0)
    timings = measure_layouts("learned", codes, uniform_codes(4, 64, seed=4), (1, 100), rounds=1)
    assert [(t.k, t.distinct, t.chosen) for t in timings] == [(1, 50, "clustered"), (100, 50, "clustered")]
    assert all(t.gain > 0 for t in timings)


def test_the_quick_benchmark_writes_its_tables_plots_and_json(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    from benchmarks.rank import __main__ as rank
    from benchmarks.rank import layouts as rank_layouts

    monkeypatch.setattr(rank_layouts, "demo_logits", lambda: np.random.default_rng(0).normal(size=(5000, 64)))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rank: begin -->\nold\n<!-- rank: end -->\nafter\n")
    rank.rank(quick=True, rounds=1, page=page, out=tmp_path / "img", json=tmp_path / "figures.json")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 64 | 30,000 | 1 | 100 | 1 |" in text
    assert "**mAP of the demo model" in text
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["measured"]) == len(rank.cases(quick=True, huge=False))
    for name in ("rank-faiss.png", "rank-size.png", "rank-layouts.png"):
        assert (tmp_path / "img" / name).stat().st_size > 5000


@pytest.mark.parametrize(("option", "why"), [("page", "is not there"), ("out", "is a file")])
def test_where_nothing_can_be_written_is_refused_before_anything_is_measured(option, why, tmp_path, monkeypatch):
    from benchmarks.rank import __main__ as rank

    monkeypatch.setattr(rank, "measured", lambda *_: pytest.fail("measured first"))
    wrong = tmp_path / "wrong"
    if option == "out":
        wrong.touch()
    with pytest.raises(InputError, match=why):
        rank.rank(quick=True, **{option: wrong})
