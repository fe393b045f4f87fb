"""Quantising many images takes the memory of few."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from dmsh_model import checkpoint
from dmsh_model.config import HashConfig
from dmsh_model.network import DMSH

SIZE, FEW, MANY = 160, 45, 320
HELD = (MANY - FEW) * SIZE * SIZE * 3 / 2**20  # MiB that the further images take
ALLOWED = 8  # MiB of growth

PROGRAM = """
import json, sys, tracemalloc
from pathlib import Path
from dmsh_export.quantise import checkpoint as quantise_files
from dmsh_export.quantise import run as quantise
from dmsh_export.cli.quantise import quantize

root = Path(sys.argv[1])
quantise.MAX_SAMPLE_BYTES = 1 << 20  # filled by the fewer images already

def peak(folder, out):
    # Of numpy's arrays, as images are: a process's own peak may lie in what it compiled or loaded before.
    tracemalloc.reset_peak()
    quantize(root / "float", root / folder, root / out)
    return tracemalloc.get_traced_memory()[1] / 2**20

tracemalloc.start()
few, many = peak("few", "few-integers"), peak("many", "many-integers")
streamed = quantise.quantise
quantise_files.quantise = lambda model, batches, *args, **named: streamed(model, list(batches), *args, **named)
print("GROWTH", json.dumps([many - few, peak("many", "held-integers") - many]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small network and two folders of images, ``few`` and ``many``."""
    root = tmp_path_factory.mktemp("memory")
    checkpoint.save(DMSH(HashConfig("test_resnet", 8, SIZE, lateral_features=8, fusion_features=8)), root / "float")
    drawn = root / "drawn.png"
    Image.effect_noise((SIZE, SIZE), 60).convert("RGB").save(drawn)
    for name, count in (("few", FEW), ("many", MANY)):
        (root / name).mkdir()
        for number in range(count):
            (root / name / f"{number}.png").hardlink_to(drawn)
    return root


def test_the_peak_does_not_grow_with_the_number_of_images_as_it_would_if_they_were_held(root):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads of so small layers wait for each other
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    streamed, held = json.loads(done.stdout.split("GROWTH")[1])
    assert streamed < ALLOWED < HELD / 2 < held
