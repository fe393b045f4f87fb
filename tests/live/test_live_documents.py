"""The recipes of docs/serving.md for other clients do what they say, on a real server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_world import IMAGES, check, png
from project import ROOT

TEXT = (ROOT / "docs" / "serving.md").read_text()
(SECTION,) = re.findall(r"^## Without our client.*?(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
CURL, PERF_ANALYZER = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(IMAGES[7]))
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("shell", [name for name in ("sh", "bash") if shutil.which(name)])
def test_curl_finds_the_nearest_images_of_a_file(shell, server, folder):
    script = CURL.replace("127.0.0.1:8000", server.http_url)
    done = subprocess.run([shell, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    outputs = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    assert (outputs["keys"][0], outputs["distances"][0], len(outputs["keys"])) == ("image-7", 0, 3)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_a_bare_file_to_the_model_with_one_input(server, folder):
    (command,) = re.findall(r"`(curl -H .*?)`", SECTION, re.DOTALL)
    command = command.replace("\n", " ").replace("127.0.0.1:8000", server.http_url) + " -s"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True)
    assert IMAGES[7].tobytes() in done.stdout


def test_the_input_data_for_perf_analyzer_is_one_search(server, client, folder):
    recipe, _, _ = PERF_ANALYZER.partition("END\nperf_analyzer")
    recipe = recipe.replace("photo.png 32", f"photo.png {IMAGES.shape[1]}") + "END\n"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", recipe], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    (asked,) = json.loads((folder / "search.json").read_text())["data"]
    image = np.array(asked["image"]["content"], np.uint8).reshape(1, *asked["image"]["shape"])
    assert np.array_equal(image, IMAGES[7:8])
    check(client.search(image, asked["k"][0]), IMAGES[7:8], asked["k"][0])


def runs(program):
    """Say whether ``program`` is there, and made for this system."""
    return (
        shutil.which(program) is not None and subprocess.run([program, "--help"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not runs("perf_analyzer"), reason="no perf_analyzer that runs here")
def test_perf_analyzer_runs_on_the_input_data(server, folder):
    script = PERF_ANALYZER.replace("photo.png 32", f"photo.png {IMAGES.shape[1]}").replace("127.0.0.1:8001", server.url)
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert "Inferences/Second vs. Client Average Batch Latency" in done.stdout
