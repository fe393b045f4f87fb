"""The benchmark of served searches: its timing, its tables, and one short run with two real Tritons."""

import json
import time

import numpy as np
import pytest
from benchmarks.serve import __main__ as serve
from benchmarks.serve import timing as serve_timing

from dmsh_export.compare.latency import Latency
from dmsh_serving.errors import InputError

IMAGES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, axis=3)


def test_lone_calls_take_turns_and_get_one_image_each():
    order = []

    def noting(name):
        return lambda images: order.append((name, images.shape, int(images[0, 0, 0, 0])))

    found = serve_timing.lone({"a": noting("a"), "b": noting("b")}, IMAGES, rounds=2, a_round=7)
    assert [(each.target, each.rounds) for each in found] == [("a", 14), ("b", 14)]
    assert {shape for _, shape, _ in order} == {(1, 1, 1, 3)}
    turns = [name for (name, _, _), (before, _, _) in zip(order[1:], order, strict=False) if name != before]
    assert turns == ["b", "a", "b"]
    assert {image for _, _, image in order} == set(range(5))


def test_throughput_counts_the_images_of_all_clients():
    calls = []

    def slow(images):
        calls.append(len(images))
        time.sleep(0.02)

    speeds = serve_timing.saturated(
        {"one": (slow, 1), "four": (slow, 4)}, IMAGES, batch=10, rounds=1, images_a_round=200
    )
    assert 0 < speeds["one"] <= 500
    assert speeds["one"] < speeds["four"] <= 2000
    assert calls.count(10) == len(calls) == (1 + 20) + (1 + 20)  # one to warm up


def test_a_client_that_fails_is_not_counted_as_fast():
    def failing(images):
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        serve_timing.saturated({"it": (failing, 2)}, IMAGES, batch=1, rounds=1, images_a_round=10)


def bench():
    def latency(name, p50):
        return Latency(name, 1, 100, p50, 2 * p50, 3 * p50, 1e3 / p50)

    medians = {serve.ENCODER: 0.2, serve.IN_PROCESS: 0.25, serve.ENSEMBLE: 1.0, serve.IDLE: 0.64}
    lone = tuple(latency(name, p50) for name, p50 in medians.items())
    speeds = {serve.ENCODER: 1000.0, serve.IN_PROCESS: 900.0, serve.ENSEMBLE: 960.0}
    return serve.ServeBench("a machine", 0.1, 1000, (serve.Served("demo", lone, 8, speeds),))


def test_the_tables_say_what_serving_adds_and_what_share_is_left():
    text = serve.markdown(bench())
    assert "| demo | Triton: the search | 1.00 | 2.00 | 3.00 | +0.75 | **1.25x** |" in text
    assert "| demo | Triton: models that do nothing | 0.64 | 1.28 | 1.92 |  |  |" in text
    assert "| demo | Triton: the search, 4 clients, 8 images per call | 960.0 | 96% |" in text


@pytest.mark.live
@pytest.mark.program
def test_a_short_run_with_real_tritons_writes_figures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend")
    measured = serve.measured
    monkeypatch.setattr(serve, "measured", lambda networks, codes, rounds: measured(networks, codes, 1))
    monkeypatch.setattr(serve, "_IMAGES_A_ROUND", {"demo": 256})
    serve.serve(quick=True, codes=500, json=tmp_path / "figures.json")
    (served,) = json.loads((tmp_path / "figures.json").read_text())["served"]
    medians = {each["target"]: each["p50_ms"] for each in served["lone"]}
    assert set(medians) == {serve.ENCODER, serve.IN_PROCESS, serve.ENSEMBLE, serve.IDLE, serve.PING}
    assert medians[serve.PING] < medians[serve.IDLE]
    assert all(speed > 0 for speed in served["images_per_s"].values())
    assert "ms over in process" in capsys.readouterr().out
