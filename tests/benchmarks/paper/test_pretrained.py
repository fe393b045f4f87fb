"""The experiment on a frozen trunk: every method on the same features, paired differences, kept results."""

import json
import sys

import numpy as np
import pytest
import torch
from benchmarks.common.page import markers
from benchmarks.paper import pretrained
from benchmarks.paper.pretrained_page import gain, markdown
from PIL import Image

from dmsh_model.backbone import build_backbone
from dmsh_serving import program


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pretrained", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            program.run(pretrained.app)
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def source(tmp_path):
    """Options of a small experiment: three classes of 22 images and weights of the small VGG."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "images-16" / name).mkdir(parents=True)
        for number in range(22):
            pixels = random.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(tmp_path / "images-16" / name / f"{number:02}.png")
    torch.manual_seed(0)
    torch.save(build_backbone("vgg_small", None).module.state_dict(), tmp_path / "trunk.pth")
    (tmp_path / "page.md").write_text("before\n{}\n{}\nafter\n".format(*markers(pretrained.SECTION)))
    weights = ("--data", tmp_path / "images-SIZE", "--pretrained", tmp_path / "trunk.pth", "--backbone", "vgg_small")
    sizes = ("--image-size", 16, "--bits", 8, "--seeds", 2, "--epochs", 2, "--jobs", 1)
    return (*weights, *sizes, "--work", tmp_path / "work", "--page", tmp_path / "page.md")


class InThisProcess:
    """A pool of processes without the processes."""

    def __init__(self, *_):
        self.futures = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


def test_every_method_learns_writes_the_page_and_is_not_repeated(command, source, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "ProcessPoolExecutor", InThisProcess)
    code, _, error = command(*source, "--json", tmp_path / "all.json")
    assert (code, error) == (0, "")
    found = json.loads((tmp_path / "all.json").read_text())["map"]
    assert len(found) == len(pretrained.METHODS) * 2
    assert min(found.values()) > 0.3  # three classes
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert all(f"| {method.title} |" in page for method in pretrained.METHODS.values())
    monkeypatch.setattr(pretrained, "map_of", lambda *_: pytest.fail("a kept result is computed again"))
    assert command(*source)[0] == 0
    monkeypatch.setattr(pretrained, "map_of", lambda *_: 0.0)
    assert command(*source, "--epochs", 3, "--json", tmp_path / "all.json")[0] == 0
    assert set(json.loads((tmp_path / "all.json").read_text())["map"].values()) == {0.0}


def test_a_folder_that_is_not_there_is_named_with_the_command_that_makes_it(command, source, tmp_path):
    code, _, error = command(*source, "--image-size", 24)
    assert (code, error.count("\n")) == (2, 1)
    assert f"python -m benchmarks.paper.clipart --out {tmp_path}/images-24 --image-size 24" in error


def test_a_gain_is_the_mean_of_paired_differences_with_students_interval():
    mean, half = gain([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


def test_only_intervals_on_one_side_of_0_are_bold():
    titles = {"fused": "all", "sure": "sure", "unsure": "unsure"}
    maps = {"fused": (0.5, 0.6, 0.7), "sure": (0.4, 0.5, 0.601), "unsure": (0.3, 0.7, 0.7)}
    results = {f"16/8/{seed}/{name}": value for name, values in maps.items() for seed, value in enumerate(values)}
    text = markdown(results, titles, [16], [8], 3)
    assert "| sure | **+10.0 (9.8 to 10.1)** |" in text
    assert "| unsure | +3.3 (-34.6 to 41.3) |" in text
    assert "| all | 60.0 ± 10.0 |" in text
