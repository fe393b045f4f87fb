import json
import os
import subprocess
import sys

import pytest
from benchmarks.scale.billion import measure_local
from benchmarks.scale.fan_out import plot, simulated
from benchmarks.scale.remote import measure_remote
from project import ROOT


def test_the_local_engine_is_measured_step_by_step(tmp_path):
    lines = []
    found = measure_local(tmp_path, 300_000, lines.append)
    assert found["seconds"].keys() == found["memory_mib"].keys()
    assert len(lines) == len(found["seconds"]) > 12
    assert all(each > 0 for each in found["memory_mib"].values())


def test_the_folders_that_are_written_to_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as in a fresh clone, which has no build
    (tmp_path / "measured.json").write_text(json.dumps({"codes": 1000, "every_millisecond": [1.0, 2.0]}))
    program = [sys.executable, "-m", "benchmarks.scale"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in (["local", "--codes", "300000"], ["plot", "--measured", "measured.json", "--out", "new/plots"]):
        subprocess.run([*program, *command], check=True, env=environment)
    assert (tmp_path / "build").is_dir()
    assert (tmp_path / "new/plots/scale-shards.png").exists()


def test_clickhouse_is_measured_beside_the_kernels(tmp_path, monkeypatch):
    pytest.importorskip("chdb")
    import clickhouse_world
    from benchmarks.scale import remote

    address = clickhouse_world.address("codes")
    monkeypatch.setattr(remote, "Address", lambda *_, **__: address)  # a process opens one embedded server
    found = measure_remote(tmp_path, 20_000, 3, lambda _: None)
    assert len(found["milliseconds"]) == len(found["processor_milliseconds"]) == 6
    assert len(found["every_millisecond"]) == 3
    plotted = plot(json.loads(json.dumps(found)), tmp_path)
    assert (tmp_path / "scale-shards.png").stat().st_size > 1000
    assert plotted["1e+08"][64]["p50"] < plotted["1e+08"][1]["p50"]


def test_more_shards_are_faster_and_the_slowest_of_many_weighs_more():
    found = simulated([10.0] * 95 + [30.0] * 5, 10**7, 10**8)
    assert found[1]["p50"] == 100.0
    assert found[64]["p50"] == pytest.approx(300 / 64)  # of 64 shards one is slow nearly always
    assert found[1]["p99"] > found[8]["p99"] > found[64]["p99"]
