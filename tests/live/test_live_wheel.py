"""The wheel, installed outside the checkout with one extra, does what that extra names."""

import subprocess
import sys

import pytest
from live_world import IMAGES, World, expected, png
from project import ROOT

import dmsh_serving


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment with the wheel and its ``client`` extra; the folder of its commands."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv" / "bin" / "pip", "install", "--quiet", f"{wheel}[client]")
    return folder / "venv" / "bin"


def run(*command, cwd=None):
    """Run a command outside the checkout; return what it prints."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_answers_its_version_and_help(installed, tmp_path):
    assert dmsh_serving.__version__ in run(installed / "dmsh-serve", "--version", cwd=tmp_path)
    assert "gallery" in run(installed / "dmsh-serve", "--help", cwd=tmp_path)


def test_it_finds_images_with_a_live_server(installed, tmp_path):
    world = World.make(tmp_path)
    (tmp_path / "query.png").write_bytes(png(IMAGES[7]))
    with world.server() as server:
        printed = run(installed / "dmsh-serve", "query", "query.png", "--url", server.url, "-k", "3", cwd=tmp_path)
    ids, _ = expected(IMAGES[7:8], 3)
    assert [f"image-{number}" in printed for number in ids[0]] == [True] * 3


def test_it_says_what_another_command_needs(installed, tmp_path):
    (tmp_path / "images").mkdir()
    done = subprocess.run(
        [installed / "dmsh-export", "onnx", "checkpoint", "--out", "x.onnx", "--images", "images"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert "pip install 'dmsh-toolkit[export]'" in done.stderr
