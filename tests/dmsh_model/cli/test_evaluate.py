import json
import sys

import numpy as np
import pytest
from project import DEMO_CHECKPOINT

from dmsh_model import cli
from dmsh_model.evaluation.plot import checked_plot_path
from dmsh_serving.errors import InputError

pytestmark = pytest.mark.slow


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
def digits(mnist, tmp_path_factory):
    """300 of MNIST's images, 100 of them to query; single labels, and two labels each: the digit, and odd or even."""
    folder = tmp_path_factory.mktemp("digits")
    chosen = np.random.default_rng(0).permutation(5000)[:300]
    images, labels = mnist.images[chosen], mnist.labels[chosen]
    rows = np.eye(12, dtype=np.uint8)[labels]
    rows[np.arange(300), 10 + labels % 2] = 1
    for name, each in (("single", labels), ("several", rows)):
        np.savez(folder / name, x_train=images[:200], y_train=each[:200], x_test=images[200:], y_test=each[200:])
    return folder


def evaluated(command, tmp_path, *arguments):
    code, text, error = command("evaluate", DEMO_CHECKPOINT, *arguments, "--json", tmp_path / "result.json")
    assert (code, error) == (0, "")
    return text, json.loads((tmp_path / "result.json").read_text())


def test_every_metric_is_printed_and_written(command, digits, tmp_path):
    text, result = evaluated(command, tmp_path, digits / "single.npz", "--topk", 5, "--topk", 50)
    assert "100 queries, database of 200" in text
    for words in ("mAP over found", "mAP over possible", "under ties", "precision", "recall", "within radius 2"):
        assert words in text
    assert 0.9 < result["map_all"] <= 1
    least, most = (result["map_all_under_ties"][name] for name in ("least", "most"))
    assert least <= result["map_all"] <= most
    assert [row["k"] for row in result["at"]] == [5, 50]
    assert set(result["at"][0]) == {
        "k", "map_over_found", "map_over_possible", "map_over_possible_under_ties", "precision", "recall",
    }  # fmt: skip
    assert result["curve"][-1]["recall"] == 1
    assert (result["queries"], result["database"], result["queries_without_relevant"]) == (100, 200, 0)


def test_a_query_without_anything_near_is_told_of(command, digits, tmp_path):
    text, result = evaluated(command, tmp_path, digits / "single.npz")
    empty = result["within_radius"]["empty_queries"]
    assert empty > 0
    assert f"{empty} queries have nothing within radius 2" in text


def test_images_of_several_labels_are_evaluated(command, digits, tmp_path):
    _, several = evaluated(command, tmp_path, digits / "several.npz")
    assert several["queries_without_relevant"] == 0
    # Half of all images are relevant to a digit now, most of them of other digits, which lie far from it.
    assert several["map_all"] < evaluated(command, tmp_path, digits / "single.npz")[1]["map_all"]


def test_the_curve_is_drawn_and_the_same_curve_is_the_same_file(command, digits, tmp_path):
    for name in ("one.svg", "two.svg"):
        evaluated(command, tmp_path, digits / "single.npz", "--plot", tmp_path / name)
    drawing = (tmp_path / "one.svg").read_text()
    assert drawing == (tmp_path / "two.svg").read_text()
    assert "recall" in drawing
    assert "64 bits" in drawing


def test_a_split_that_comes_with_the_images_takes_no_options(command, digits):
    code, _, error = command("evaluate", DEMO_CHECKPOINT, digits / "single.npz", "--seed", 1, "--queries-per-class", 5)
    assert (code, error.count("\n")) == (2, 1)
    assert "--queries-per-class, --seed: single.npz comes with its split" in error


def test_another_split_than_the_trainings_is_told_of(command, digits, tmp_path):
    text, result = evaluated(command, tmp_path, digits / "single.npz")
    assert not result["split_as_trained"]
    assert "not the split of the training" in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("coco:absent:absent", "cocodataset.org"),
        ("cifar10-54000:absent", "unpack it"),
        ("absent.npz", "x_train"),
    ],
)
def test_data_that_is_not_there_is_one_line_with_a_hint_and_exit_2(command, data, message):
    code, text, error = command("evaluate", DEMO_CHECKPOINT, data)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize("name", ["curve.png", "absent/curve.svg", "folder.svg"])
def test_a_plot_that_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(InputError, match=r"--plot .*: name a file"):
        checked_plot_path(tmp_path / name)
    assert checked_plot_path(tmp_path / "curve.svg") == tmp_path / "curve.svg"


def test_resized_images_are_kept_for_the_next_run(command, digits, tmp_path):
    smaller = dict(np.load(digits / "single.npz"))
    for name in ("x_train", "x_test"):
        smaller[name] = smaller[name][:, 2:30, 2:30]
    np.savez(tmp_path / "small.npz", **smaller)
    results = [evaluated(command, tmp_path, tmp_path / "small.npz", "--cache", tmp_path / "cache")[1] for _ in range(2)]
    assert results[0] == results[1]
    assert len(list((tmp_path / "cache").iterdir())) == 2
