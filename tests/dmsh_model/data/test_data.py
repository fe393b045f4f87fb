"""What the data sets are for: a network trained on one is evaluated on the split it was trained with."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dmsh_model import cli

SMALL = ("--image-size", 16, "--bits", 16, "--epochs", 2, "--batch-size", 8)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run dmsh-train in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmsh-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """List files of 36 images in three hues, each with one to three of them as labels."""
    root = tmp_path_factory.mktemp("listed")
    random = np.random.default_rng(0)
    lines = []
    for number in range(36):
        labels = np.array([number % 3 == 0, number % 3 == 1, number % 3 == 2]) | (random.random(3) < 0.3)
        pixels = random.integers(0, 80, (16, 16, 3)) + 170 * labels
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        lines.append(f"{number}.png {' '.join(map(str, labels.astype(int)))}")
    for part, rows in (("test", slice(0, 8)), ("database", slice(8, None)), ("train", slice(8, 28))):
        (root / f"{part}.txt").write_text("\n".join(lines[rows]))
    return root


def test_a_network_of_several_labels_is_trained_and_evaluated_on_the_given_split(command, listed, tmp_path):
    out, cache = tmp_path / "model", tmp_path / "cache"
    code, _, error = command(
        "fit", f"lists:{listed}", "--out", out, *SMALL, "--cache", cache, "--json", tmp_path / "fit.json"
    )
    assert (code, error) == (0, "")
    fitted = json.loads((tmp_path / "fit.json").read_text())
    split = fitted["split"]
    assert (split["given"], split["queries"], split["database"], split["train"]) == (True, 8, 28, 20)
    assert "queries_per_class" not in split
    code, text, _ = command("evaluate", out, f"lists:{listed}", "--cache", cache, "--json", tmp_path / "evaluate.json")
    assert code == 0
    evaluated = json.loads((tmp_path / "evaluate.json").read_text())
    assert evaluated["split_as_trained"]
    assert evaluated["data_as_trained"]
    assert evaluated["map_all"] == fitted["map_all"]
    assert "not the split" not in text
    assert "not the images" not in text


def test_training_takes_no_options_of_a_split_that_is_given(command, listed, tmp_path):
    code, text, error = command("fit", f"lists:{listed}", "--out", tmp_path / "model", *SMALL, "--train-per-class", 5)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert "--train-per-class: " in error
    assert "comes with its split" in error
    assert list(tmp_path.iterdir()) == []


def test_other_images_in_the_same_split_are_told_of(command, listed, tmp_path):
    assert command("fit", f"lists:{listed}", "--out", tmp_path / "model", *SMALL)[0] == 0
    shutil.copytree(listed, tmp_path / "changed")
    Image.new("RGB", (16, 16)).save(tmp_path / "changed" / "3.png")
    code, text, _ = command("evaluate", tmp_path / "model", f"lists:{tmp_path / 'changed'}")
    assert code == 0
    assert "not the images of the training" in text


def test_a_given_split_is_not_taken_for_a_drawn_one(command, listed, tmp_path):
    assert command("fit", f"lists:{listed}", "--out", tmp_path / "model", *SMALL)[0] == 0
    train = (listed / "train.txt").read_text().splitlines()
    for part in ("test", "database"):
        (tmp_path / f"{part}.txt").write_text((listed / f"{part}.txt").read_text())
    (tmp_path / "train.txt").write_text("\n".join(train[:-1]))
    code, text, _ = command("evaluate", tmp_path / "model", f"lists:{tmp_path}:{listed}")
    assert code == 0
    assert "not the split of the training" in text
