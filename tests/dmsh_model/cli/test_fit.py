import contextlib
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from dmsh_model import cli
from dmsh_serving import console


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of twelve 16x16 images."""
    root = tmp_path_factory.mktemp("images") / "photos"
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 100, (16, 16, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture
def command(monkeypatch, capsys):
    """Run dmsh-train in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmsh-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


SMALL = ("--image-size", 16, "--bits", 16, "--queries-per-class", 3, "--epochs", 2, "--batch-size", 8)


@pytest.mark.slow
def test_fit_then_evaluate_agree_on_the_map(command, folder, tmp_path):
    out = tmp_path / "model"
    code, text, _ = command("fit", folder, "--out", out, *SMALL, "--json", tmp_path / "fit.json")
    assert code == 0
    assert "mAP@all" in text
    fitted = json.loads((tmp_path / "fit.json").read_text())
    code, text, _ = command("evaluate", out, folder, "--topk", 2, "--topk", 5, "--json", tmp_path / "evaluate.json")
    assert code == 0
    assert "not the split" not in text
    evaluated = json.loads((tmp_path / "evaluate.json").read_text())
    assert evaluated["map_all"] == fitted["map_all"]
    assert evaluated["split_as_trained"]
    assert [row["k"] for row in evaluated["at"]] == [2, 5]


def test_evaluate_says_when_the_split_is_not_that_of_the_training(command, folder, tmp_path):
    assert command("fit", folder, "--out", tmp_path / "model", *SMALL)[0] == 0
    code, text, _ = command("evaluate", tmp_path / "model", folder, "--seed", 1)
    assert code == 0
    assert "not the split of the training" in text


def test_the_progress_of_an_evaluation_reaches_its_end(command, folder, tmp_path, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def recorded():
        with Progress(disable=True) as display:
            yield display
        shown.extend(display.tasks)

    assert command("fit", folder, "--out", tmp_path / "model", *SMALL)[0] == 0
    monkeypatch.setattr(console, "progress", recorded)
    assert command("evaluate", tmp_path / "model", folder)[0] == 0
    assert [(task.description, task.completed, task.total) for task in shown][-1] == ("coding images", 2, 2)


def test_a_corrupt_image_stops_or_is_skipped_and_counted(command, folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    (photos / "red" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    fit = ("fit", photos, "--out", tmp_path / "model", *SMALL)
    code, _, error = command(*fit)
    assert (code, error.count("\n")) == (2, 1)
    assert "red/bad.jpg" in error
    assert not (tmp_path / "model").exists()
    assert command(*fit, "--skip-bad", "--json", tmp_path / "fit.json")[0] == 0
    assert len(json.loads((tmp_path / "fit.json").read_text())["bad"]) == 1


BAD_USES = {
    "bits out of range": (("--bits", 0), "bits = 0 is out of range"),
    "unknown backbone": (("--backbone", "vgg_smal"), "nearest names: vgg_small"),
    "no epochs": (("--epochs", 0), "epochs = 0"),
    "unknown crop": (("--crop", "middle"), "is not one of 'centre', 'pad'"),
    "mean of bytes": (("--mean", 124, 116, 104), "must be 0 to 1"),
    "one deviation": (("--std", 0.5), "--std"),
    "too few images a class": (("--queries-per-class", 12), "green (12), red (12)"),
    "missing weights": (("--pretrained", "absent.pth", "--backbone", "vgg_small"), "absent.pth does not exist"),
    "weights of no network": (("--pretrained", "absent.pth"), "as --backbone NAME"),
    "nothing to freeze": (("--freeze-backbone",), "--freeze-backbone keeps trained weights"),
    "noise on nothing": (("--noise", 0.1), "--noise, --unfreeze-after and --unfrozen-rate are for --freeze-backbone"),
    "classes without labels": (("--unlabelled",), "takes --seed, --threads and --device, no other option"),
    "negative loss weight": (("--pairwise", -1), "pairwise = -1"),
    "a layer beyond reason": (("--fusion-features", 10**9), "fusion_features = 1000000000 must be at most 65536"),
    "nothing to learn": (
        ("--pairwise", 0, "--quantisation", 0, "--classification", 0),
        "the weights of all losses are 0",
    ),
    "more bits than images": (("--bits", 64), "18 training images cannot give 64 bits"),
    "patience without validation": (("--patience", 2), "needs a validation_share"),
    "mixed precision on a CPU": (("--mixed-precision",), "mixed_precision is for a GPU"),
    "an imbalance above 1": (("--imbalance", 2), "imbalance = 2.0 must be 0 to 1"),
    "nothing to resume": (("--resume",), "no unfinished training"),
    "unknown option": (("--colour", 1), "--colour"),
    "bits that are no number": (("--bits", "many"), "'--bits'"),
}


@pytest.mark.parametrize("use", BAD_USES)
def test_a_bad_use_is_one_line_and_exit_2_and_writes_nothing(command, folder, tmp_path, use):
    options, message = BAD_USES[use]
    code, text, error = command("fit", folder, "--out", tmp_path / "model", *SMALL, *options)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_by_validation_is_told(command, folder, tmp_path):
    fit = ("fit", folder, "--out", tmp_path / "model", *SMALL, "--validation-share", 0.2, "--patience", 1)
    code, text, _ = command(*fit, "--bits", 8, "--trunk-rate", 0.5, "--json", tmp_path / "fit.json")
    assert code == 0
    assert "best epoch, by validation mAP" in text
    options = json.loads((tmp_path / "fit.json").read_text())["options"]
    assert {name: options[name] for name in ("patience", "trunk_rate", "validation_share")} == {
        "patience": 1,
        "trunk_rate": 0.5,
        "validation_share": 0.2,
    }


def test_a_process_that_is_not_the_first_says_and_writes_nothing(command, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command("fit", folder, "--out", tmp_path / "model", *SMALL, "--json", tmp_path / "fit.json") == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_log_holds_every_epochs_losses_and_validation_map(command, folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = ("fit", folder, "--out", tmp_path / "model", *SMALL, "--bits", 8, "--validation-share", 0.2)
    assert command(*fit, "--log", tmp_path / "log")[0] == 0
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert {"loss/total", "loss/pairwise", "validation/map_all"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2]


def test_a_log_without_tensorboard_is_one_line_and_exit_3_before_any_training(command, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, text, error = command("fit", folder, "--out", tmp_path / "model", *SMALL, "--log", tmp_path / "log")
    assert (code, text, error.count("\n")) == (3, "", 1)
    assert "--log needs the package tensorboard" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["missing", "empty", "one class", "a file"])
def test_data_that_cannot_be_trained_on_is_one_line_and_exit_2(command, tmp_path, what):
    photos = tmp_path / "photos"
    if what == "a file":
        photos.write_text("text")
    elif what != "missing":
        photos.mkdir()
    if what == "one class":
        (photos / "red").mkdir()
        Image.new("RGB", (16, 16)).save(photos / "red" / "a.png")
    code, _, error = command("fit", photos, "--out", tmp_path / "model", *SMALL)
    assert (code, error.count("\n")) == (2, 1)
    assert str(photos) in error
    assert not (tmp_path / "model").exists()


def test_resuming_with_another_config_is_one_line_and_exit_2(command, folder, tmp_path, monkeypatch):
    from dmsh_model.training import run as training

    fit = ("fit", folder, "--out", tmp_path / "model", *SMALL)
    monkeypatch.setattr(training, "held_out_map", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command(*fit)[0] == 130
    monkeypatch.undo()
    code, _, error = command(*fit, "--bits", 24, "--resume")
    assert (code, error.count("\n")) == (2, 1)
    assert "config.bits was 16, is 24" in error
    assert command(*fit, "--resume")[0] == 0


def test_evaluate_without_a_checkpoint_is_one_line_and_exit_2(command, folder, tmp_path):
    code, _, error = command("evaluate", tmp_path / "absent", folder)
    assert (code, error.count("\n")) == (2, 1)
    code, _, error = command("evaluate", tmp_path, folder, "--topk", 0)
    assert (code, "topk = 0" in error) == (2, True)


@pytest.mark.parametrize("training", [[], {"split": [1]}, {"split": {"seed": "zero"}}, {"split": {"seed": None}}])
def test_a_checkpoint_with_a_broken_training_record_is_one_line_and_exit_2(command, folder, tmp_path, training):
    assert command("fit", folder, "--out", tmp_path / "model", *SMALL)[0] == 0
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "training": training}))
    code, _, error = command("evaluate", tmp_path / "model", folder)
    assert (code, error.count("\n")) == (2, 1)


def test_preprocessing_goes_into_the_checkpoint_and_its_fingerprint(command, folder, tmp_path):
    chosen = ("--crop", "pad", "--interpolation", "lanczos", "--mean", 0.1, 0.2, 0.3, "--std", 0.5, 0.5, 0.25)
    headers = []
    for name, options in (("usual", ()), ("chosen", chosen)):
        assert command("fit", folder, "--out", tmp_path / name, *SMALL, *options)[0] == 0
        headers.append(json.loads((tmp_path / name / "config.json").read_text()))
    usual, config = (header["config"] for header in headers)
    assert (usual["crop"], usual["interpolation"]) == ("centre", "bicubic")
    assert (config["crop"], config["interpolation"]) == ("pad", "lanczos")
    assert (config["mean"], config["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.25])
    assert headers[0]["fingerprint"] != headers[1]["fingerprint"]
    code, text, _ = command("evaluate", tmp_path / "chosen", folder)
    assert code == 0
    assert "not decoded as they were" not in text


@pytest.fixture
def trunk(tmp_path):
    """Options that name weights of the small VGG."""
    import torch

    from dmsh_model.backbone import build_backbone

    torch.save(build_backbone("vgg_small", None).module.state_dict(), tmp_path / "trunk.pth")
    return ("--pretrained", tmp_path / "trunk.pth", "--backbone", "vgg_small", "--image-size", 16, "--bits", 8)


def test_a_frozen_trunk_gives_a_checkpoint_that_evaluates_as_it_was_trained(command, folder, tmp_path, trunk):
    frozen = (*trunk, "--freeze-backbone", "--queries-per-class", 3, "--epochs", 2, "--batch-size", 8)
    assert command("fit", folder, "--out", tmp_path / "model", *frozen, "--json", tmp_path / "fit.json")[0] == 0
    assert command("evaluate", tmp_path / "model", folder, "--json", tmp_path / "evaluate.json")[0] == 0
    fitted, evaluated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("fit", "evaluate"))
    assert evaluated["map_all"] == pytest.approx(fitted["map_all"], abs=0.02)
    assert fitted["frozen"] == {"noise": 0.3, "unfreeze_after": 0, "unfrozen_rate": 0.05}


def test_images_without_labels_give_codes_that_find_themselves(command, folder, tmp_path, trunk):
    unlabelled = ("--unlabelled", "--sample", 20, "--json", tmp_path / "fit.json")
    code, text, _ = command("fit", folder, "--out", tmp_path / "model", *trunk, *unlabelled)
    assert code == 0
    assert "its 2 folders are not used as classes" in " ".join(text.split())
    assert json.loads((tmp_path / "fit.json").read_text())["unlabelled"]["images"] == 20
    pairs = (
        "evaluate",
        tmp_path / "model",
        "--pairs",
        folder / "red",
        folder / "red",
        "--json",
        tmp_path / "pairs.json",
    )
    assert command(*pairs)[0] == 0
    found = json.loads((tmp_path / "pairs.json").read_text())
    assert (found["queries"], found["database"], found["without_partner"]) == (12, 12, 0)
    assert found["recall"]["100"] == 1
    code, _, error = command("evaluate", tmp_path / "model")
    assert (code, "give either DATA" in error) == (2, True)
    code, _, error = command("evaluate", tmp_path / "model", folder, "--partners", "pairs.csv")
    assert (code, "--partners names the pairs of --pairs" in error) == (2, True)
