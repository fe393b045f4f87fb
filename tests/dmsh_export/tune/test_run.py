"""The tuner: what it tries fills the cores, what it chooses is the fastest within the latency, and why."""

import json

import pytest
import tiny_model
from typer.testing import CliRunner

from dmsh_export.cli import app
from dmsh_export.tune import run
from dmsh_export.tune.grid import Alone, finalists, settings_of, thread_counts
from dmsh_export.tune.live import Load
from dmsh_export.tune.run import Effort, Found, chosen_of, describe, tune
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.load.measure import Measuring
from dmsh_serving.triton.settings import EncoderSettings, read_settings

SMALL = Effort((1, 4), 2, 0.1, 2, (1, 2), Measuring(0.1, 0.1, 3))
SETTINGS = EncoderSettings("openvino", 2, max_batch=8)


def found(p99, speed, *, within=True, settings=SETTINGS):
    return Found(settings, Load(4, speed, p99 / 2, p99, 100), within)


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_go_in_powers_of_two_up_to_the_cores(cores, counts):
    assert thread_counts(cores) == counts


def test_instances_fill_the_cores_that_one_call_leaves():
    estimates = list(settings_of([Alone("onnxruntime", 1, 8, 0.1), Alone("onnxruntime", 4, 8, 0.04)], 4))
    tried = {(settings.threads, settings.instances): speed for settings, speed, _ in estimates}
    assert tried == {(1, 1): 80, (1, 4): 320, (4, 1): 200}


def test_the_best_estimates_within_the_latency_are_served_and_every_runtime_once():
    measured = [
        Alone("openvino", 1, 32, 0.2), Alone("openvino", 1, 4, 0.02), Alone("openvino", 1, 1, 0.006),
        Alone("onnxruntime", 1, 1, 0.04),
    ]  # fmt: skip
    chosen = finalists(measured, 1, 0.05, 3)
    assert [(one.runtime, one.max_batch, one.queue_delay_microseconds) for one in chosen] == [
        ("openvino", 4, 0), ("onnxruntime", 1, 0), ("openvino", 4, 500),
    ]  # fmt: skip


def test_if_no_call_fits_the_shortest_are_served():
    measured = [Alone("openvino", 1, 8, 0.8), Alone("openvino", 1, 1, 0.2)]
    assert [one.max_batch for one in finalists(measured, 1, 0.05, 1)] == [1]


def test_the_fastest_within_the_latency_is_chosen_and_a_faster_one_beyond_it_is_not():
    right = found(40, 300)
    assert chosen_of([found(90, 900, within=False), right, found(10, 100)], 50) is right


def test_a_latency_that_nothing_meets_is_an_error_that_says_the_best():
    live = [found(90, 900, within=False), found(72.5, 100, within=False)]
    with pytest.raises(CheckError, match=r"within 50 ms \(p99\): the best is 72\.5 ms, with OpenVINO, 1 x 2 threads"):
        chosen_of(live, 50)


def test_settings_are_told_for_people():
    assert describe(SETTINGS) == "OpenVINO, 1 x 2 threads, batches of up to 8"
    assert describe(SETTINGS.replaced({"queue_delay_microseconds": 500})).endswith(", 500 us delay")


@pytest.fixture
def served(monkeypatch):
    """Settings that are said to be served: the calls, and what they are said to give."""
    calls = []

    def measured_live(model, metadata, settings, images, clients, measuring, triton):
        calls.append((model.name, settings, images.shape[1:]))
        return [Load(count, 100.0 * count * settings.max_batch, 1.0, 2.0 * count, 50) for count in clients]

    monkeypatch.setattr(run, "measured_live", measured_live)
    return calls


def test_one_model_is_timed_alone_then_served_and_the_settings_are_those_of_the_best(tmp_path, served):
    path = tiny_model.write(tmp_path / "model.onnx")
    steps = []
    tuning = tune([path], 3.0, SMALL, on_step=steps.append)
    assert len(served) == 2
    assert all(name == "model.onnx" and shape == (16, 16, 3) for name, _, shape in served)
    assert tuning.chosen.load.clients == 1  # of 2 clients the p99 is 4 ms
    assert tuning.chosen.settings.runtime == "onnxruntime"
    assert tuning.model == path
    assert {one.batch for one in tuning.alone} == {1, 4}
    assert steps[0] == "alone, 1 threads"
    assert any(step.startswith("live: ONNX Runtime") for step in steps)
    json.dumps(tuning.to_dict())


def test_files_of_two_networks_or_two_of_one_runtime_are_refused(tmp_path):
    path = tiny_model.write(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="are both for ONNX Runtime: name one of them"):
        tune([path, path], 50.0, SMALL)
    other = tiny_model.write(tmp_path / "other.onnx", fingerprint="cd" * 32, dialect="openvino")
    with pytest.raises(InputError, match="are of different code spaces"):
        tune([path, other], 50.0, SMALL)


def test_the_command_writes_settings_that_repository_takes_and_a_plot(tmp_path, served, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run, "QUICK", SMALL)
    path, out, plot = tiny_model.write(tmp_path / "model.onnx"), tmp_path / "settings.json", tmp_path / "tune.png"
    options = ["--out", str(out), "--plot", str(plot), "--json", str(tmp_path / "all.json"), "--quick"]
    done = CliRunner().invoke(app, ["tune", str(path), *options])
    assert done.exit_code == 0, done.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    chosen = read_settings(out)
    assert json.loads((tmp_path / "all.json").read_text())["chosen"]["settings"]["max_batch"] == chosen.max_batch
    made = CliRunner().invoke(
        app,
        [
            "repository",
            str(path),
            "--settings",
            str(out),
            "--gallery",
            str(tmp_path / "g"),
            "--out",
            str(tmp_path / "r"),
        ],
    )
    assert made.exit_code == 0, made.output
    assert f"max_batch_size: {chosen.max_batch}" in (tmp_path / "r" / "dmsh_encoder" / "config.pbtxt").read_text()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, CheckError("nothing fits")])
def test_an_interrupted_or_failed_tuner_writes_nothing(tmp_path, monkeypatch, interruption):
    def stop(*_, **__):
        raise interruption

    monkeypatch.setattr(run, "measured_live", stop)
    monkeypatch.setattr(run, "QUICK", SMALL)
    path, out = tiny_model.write(tmp_path / "model.onnx"), tmp_path / "settings.json"
    done = CliRunner().invoke(app, ["tune", str(path), "--out", str(out), "--quick"])
    assert done.exit_code != 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path, served):
    path = tiny_model.write(tmp_path / "model.onnx")
    done = CliRunner().invoke(app, ["tune", str(path), "--out", str(tmp_path / "absent" / "settings.json")])
    assert done.exit_code != 0
    assert "name a file in a folder that exists" in str(done.exception)
    assert served == []
