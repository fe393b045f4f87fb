"""The experiment: its files, its runs, what it keeps, and its page."""

import dataclasses
import json
import shutil
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from benchmarks.common.page import markers
from benchmarks.paper import __main__ as paper
from benchmarks.paper import page as paper_page
from benchmarks.paper import runs as paper_runs
from benchmarks.paper import train as paper_train
from benchmarks.paper.configurations import read_configuration, read_experiment
from project import ROOT

from dmsh_model import checkpoint
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.split import SplitOptions
from dmsh_model.training import run as training
from dmsh_serving import program
from dmsh_serving.errors import CheckError, InputError

EXPERIMENTS = ROOT / "experiments"
CONFIGURATIONS = sorted(path for path in EXPERIMENTS.glob("*.toml") if path.name != "paper.toml")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run an app in this process; returns (exit code, stdout, stderr)."""

    def run(app, *arguments):
        monkeypatch.setattr(sys, "argv", ["paper", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            program.run(app)
        return (stop.value.code or 0, *capsys.readouterr())

    return run


def smoke(work, *more):
    return (paper.app, "--smoke", "--jobs", 1, "--experiment", EXPERIMENTS / "paper.toml", "--work", work, *more)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the smoke run keeps its runs."""
    return tmp_path_factory.mktemp("paper")


def test_the_smoke_run_trains_every_configuration_and_every_export_has_no_wrong_bit(command, work):
    code, text, error = command(*smoke(work, "--json", work / "all.json"))
    assert (code, error) == (0, "")
    results = json.loads((work / "all.json").read_text())["runs"]
    assert {result["identity"]["configuration"]["name"] for result in results.values()} == {
        each.name for each in read_experiment(EXPERIMENTS / "paper.toml").configurations
    }
    for name, result in results.items():
        assert result["parity"] == {"bits_compared": 40 * 16, "refused": None, "unfolded": False}
        assert checkpoint.load(work / name).fingerprint == result["fingerprint"]
    assert max(result["retrieval"]["map_all"] for result in results.values()) > 0.3, "chance is about 0.1"
    assert "6 exports of 3,840 bits, 0 refused" in text


def test_a_finished_run_is_not_repeated_and_a_changed_one_is(command, work, monkeypatch):
    performed = []

    def failing(run, folder):
        performed.append(run.name)
        raise CheckError("not again")

    monkeypatch.setattr(paper_runs, "perform", failing)
    assert command(*smoke(work))[0] == 0
    assert performed == []
    file = work / "mnist5k-dpsh-16-0-smoke.json"
    kept = json.loads(file.read_text())
    kept["identity"]["configuration"]["options"]["epochs"] = 99
    file.write_text(json.dumps(kept))
    code, _, error = command(*smoke(work))
    assert (code, performed) == (1, ["mnist5k-dpsh-16-0-smoke"])
    assert "1 of 6 runs failed: mnist5k-dpsh-16-0-smoke: not again" in error


def test_every_combination_is_run_once_and_one_of_each_kind_first():
    experiment = read_experiment(EXPERIMENTS / "paper.toml")
    runs = paper_runs.runs_of(experiment)
    assert len({run.name for run in runs}) == len(runs) == 6 * 2 * 4 * 3
    kinds = [(run.configuration.name, run.data.name) for run in runs[:12]]
    assert len(set(kinds)) == 12
    taps = {each.name: each.network["taps"] for each in experiment.configurations}
    assert taps == {
        "dmsh": (2, 3, 4), "last_stage": (4,), "stages_3_4": (2, 3), "stages_3_5": (2, 4), "stages_4_5": (3, 4),
        "dpsh": (4,),
    }  # fmt: skip


def test_ablations_differ_from_dmsh_in_their_scales_alone():
    dmsh = read_configuration(EXPERIMENTS / "dmsh.toml")
    for name in ("last_stage", "stages_3_4", "stages_3_5", "stages_4_5"):
        ablation = read_configuration(EXPERIMENTS / f"{name}.toml")
        assert ablation.network["taps"] != dmsh.network["taps"]
        as_dmsh = {"name": "", "title": "", "network": dmsh.network}
        assert dataclasses.replace(ablation, **as_dmsh) == dataclasses.replace(dmsh, **as_dmsh)


@pytest.mark.parametrize("name", ["vgg19_cifar10", "vgg19_nuswide"])
def test_the_configurations_for_a_gpu_train_one_batch_on_generated_data(name, tmp_path):
    read = read_configuration(EXPERIMENTS / f"{name}.toml")
    assert (read.network["backbone"], read.image_size) == ("vgg19", 224)
    classes = 21 if "nuswide" in name else 10
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 224, 224, 3), np.uint8)
    labels = np.arange(4) % classes
    if classes == 21:
        labels = np.maximum(np.eye(21, dtype=np.uint8)[labels], np.eye(21, dtype=np.uint8)[labels + 1])
    split = Split(np.arange(2), np.arange(2, 4), np.arange(2, 4), given=True)
    names = [str(row) for row in range(classes)]
    data = LabelledImages("generated", images, labels, list("abcd"), names, given_split=split)
    config = read.hash_config(2, classes, digits=False)
    here = dataclasses.replace(  # one epoch on a CPU, with nothing to hold out
        read.options, epochs=1, validation_share=0.0, patience=0, device="cpu", mixed_precision=False
    )
    epochs = []
    trained = training.fit(config, data, SplitOptions(), here, tmp_path / "model", on_epoch=epochs.append)
    assert np.isfinite(epochs[0].loss)
    assert trained.model.taps == (2, 3, 4)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path):
    read = read_configuration(path)
    assert read.hash_config(48, 10, digits=False).loss == read.loss


BAD_FILES = {
    "no TOML": ("title = ", "is not TOML"),
    "an unknown section": ("[trainign]\nepochs = 1", "unknown sections trainign"),
    "an unknown field": ("[training]\nepoch = 1", "training: unknown field epoch"),
    "a field of the run": ("[network]\nbits = 16", "bits are a run's"),
    "a value out of range": ("[training]\nepochs = 0", "epochs = 0 must be at least 1"),
    "a wrong type": ("[network]\nimage_size = 'large'", "network: image_size = 'large' must be"),
    "a truth for a number": ("[training]\nepochs = true", "epochs = True must be"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_configuration_that_cannot_be_used_is_refused_by_its_name(tmp_path, what):
    text, said = BAD_FILES[what]
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_configuration(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_an_experiment_that_lacks_something_is_refused(tmp_path):
    path = tmp_path / "paper.toml"
    path.write_text("configurations = []\nbits = [16]\nseeds = [0]\n[data]")
    with pytest.raises(InputError, match="must name at least one each"):
        read_experiment(path)
    path.write_text("bits = [16]")
    with pytest.raises(InputError, match="needs configurations"):
        read_experiment(path)
    shutil.copy(EXPERIMENTS / "dpsh.toml", tmp_path)
    path.write_text(
        'configurations = ["dpsh"]\nbits = [16]\nseeds = [0]\n'
        '[data.mnist5k]\nsource = "mnist5k"\nqueries_per_class = 5\ntrain_per_class = 9\n'
    )
    with pytest.raises(InputError, match="must include dmsh"):
        read_experiment(path)


def made_up(experiment, gain):
    """Results in which the configuration of index i has mAP 0.5 + seed / 100 - gain i, one query, no wrong bits."""
    results = {}
    for run in paper_runs.runs_of(experiment):
        place = experiment.configurations.index(run.configuration)
        retrieval = {"map_all": 0.5 + run.seed / 100 - gain * place, "queries": 10, "database": 90,
                     "curve": [{"radius": 0, "precision": 1.0, "recall": 0.5}]}  # fmt: skip
        results[run.name] = {"identity": run.identity(), "retrieval": retrieval, "seconds": 36.0,
                             "parity": {"bits_compared": 100, "refused": None, "unfolded": False}}  # fmt: skip
    return results


@pytest.fixture
def page(tmp_path):
    """A page with a place for the tables."""
    begin, end = markers(paper_page.SECTION)
    (tmp_path / "results.md").write_text(f"It helps by two points.\n{begin}\n{end}\n")
    return tmp_path / "results.md"


def test_the_page_tells_means_spread_and_gains_and_keeps_what_a_person_wrote(tmp_path, page):
    experiment = read_experiment(EXPERIMENTS / "paper.toml")
    results = made_up(experiment, 0.02)
    paper_page.write_page(page, experiment, results, "2 cores")
    text = page.read_text()
    assert "| DMSH: stages 3, 4, 5 |" + " 51.00 ± 1.00 |" * 4 in text
    assert "| stage 5 alone |" + " +2.00 ± 0.00 |" * 4 in text
    assert "14,400 bits in all: 0 wrong bits" in text
    assert "1.4 hours of one thread" in " ".join(text.split())
    assert "unfolded" not in text
    assert "<svg" in (tmp_path / "results-clipart.svg").read_text()
    results["clipart-dmsh-16-2"]["parity"]["unfolded"] = True
    paper_page.write_page(page, experiment, results, "2 cores")
    text = " ".join(page.read_text().split())
    assert "It helps by two points." in text
    assert "The folded graph of clipart-dmsh-16-2 was refused" in text


def test_a_page_without_a_place_for_the_tables_is_refused_before_anything_is_trained(command, tmp_path):
    (tmp_path / "results.md").write_text("No place.")
    options = ("--experiment", EXPERIMENTS / "paper.toml", "--work", tmp_path / "work")
    code, _, error = command(paper.app, *options, "--page", tmp_path / "results.md")
    assert (code, error.count("\n")) == (2, 1)
    assert "add the two lines" in error
    assert not (tmp_path / "work").exists()


def test_a_refused_export_is_kept_told_on_the_page_and_exit_1(command, tmp_path, page, monkeypatch):
    experiment = read_experiment(EXPERIMENTS / "paper.toml")
    results = made_up(experiment, 0.02)
    results["clipart-dpsh-48-1"]["parity"]["refused"] = "1 of 100 bits differ"
    monkeypatch.setattr(paper_runs, "perform", lambda run, folder: results[run.name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "clipart").mkdir(parents=True)
    options = ("--experiment", EXPERIMENTS / "paper.toml", "--page", page, "--jobs", 1)
    code, text, error = command(paper.app, *options, "--plan")
    assert (code, error) == (0, "")
    assert "132 runs are left, about 79 minutes" in text
    assert "mnist5k" not in page.read_text()
    code, text, error = command(paper.app, *options)
    assert (code, error.count("\n")) == (1, 1)
    assert "clipart-dpsh-48-1: 1 of 100 bits differ" in error
    assert "1 refused" in text
    assert "**refused exports: 1**: clipart-dpsh-48-1" in " ".join((tmp_path / "results.md").read_text().split())


@pytest.mark.parametrize("unfolded_is_exact", [False, True])
def test_a_run_whose_export_has_a_wrong_bit_says_so_in_its_result(unfolded_is_exact, tmp_path, monkeypatch):
    from dmsh_export.to_onnx import float as onnx

    def wrong(model, out, images, *, folded):
        if folded or not unfolded_is_exact:
            raise CheckError(f"{out} is not written: 1 of 640 bits differ")

    monkeypatch.setattr(onnx, "export_onnx", wrong)
    experiment = read_experiment(EXPERIMENTS / "paper.toml")
    run = next(each for each in paper_runs.runs_of(experiment, smoke=True) if each.data.name == "mnist5k")
    result = paper_runs.perform(run, tmp_path)
    refused = [] if unfolded_is_exact else [f"{run.name}: 1 of 640 bits differ"]
    assert paper_runs.refused_exports({run.name: result}) == refused
    assert result["parity"]["unfolded"]
    assert json.loads((tmp_path / f"{run.name}.json").read_text()) == json.loads(json.dumps(result))


def test_a_killed_training_is_told_of_in_one_line_and_exit_3(command, work, monkeypatch):
    class KilledPool:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(paper_runs, "ProcessPoolExecutor", KilledPool)
    monkeypatch.setattr(paper_runs, "finished", lambda *_: None)
    code, _, error = command(*smoke(work, "--jobs", 2))
    assert (code, error.count("\n")) == (3, 1)
    assert f"those finished are kept in {work}" in error


def test_data_that_is_not_made_yet_is_named_with_its_command(command, tmp_path, page, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(paper.app, "--experiment", EXPERIMENTS / "paper.toml", "--page", page)
    assert (code, error.count("\n")) == (2, 1)
    assert "make it with python -m benchmarks.paper.clipart" in error
    assert list(tmp_path.iterdir()) == [page]


def test_one_configuration_trains_on_any_data(command, tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 40)
    images = random.integers(0, 120, (80, 32, 32, 3)) + 130 * np.eye(3)[labels][:, None, None, :]
    np.savez(tmp_path / "colours.npz", images=images.astype(np.uint8), labels=labels)
    quick = tmp_path / "quick.toml"
    quick.write_text((EXPERIMENTS / "dmsh_centres.toml").read_text().replace("epochs = 20", "epochs = 2"))
    fit = (paper_train.app, quick, "--data", tmp_path / "colours.npz", "--out", tmp_path / "model", "--bits", 16)
    code, text, error = command(*fit, "--queries-per-class", 10)
    assert (code, error) == (0, "")
    assert "mAP@all" in text
    assert checkpoint.load(tmp_path / "model").config.loss.centres == 1
    code, _, error = command(*fit, "--overwrite", "--queries-per-class", 40)
    assert (code, error.count("\n")) == (2, 1)
    assert "0 (40), 1 (40)" in error
