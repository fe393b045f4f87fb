"""Training in two processes, which torchrun starts, on a CPU."""

import os
import subprocess
import sys

import pytest
import torch
from distributed_training import CONFIG, colours
from project import ROOT

from dmsh_model import checkpoint
from dmsh_model.data.split import SplitOptions
from dmsh_model.training import run as training
from dmsh_model.training.distributed import Ranks, started_by_torchrun
from dmsh_model.training.options import TrainingOptions
from dmsh_serving.errors import InputError

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROGRAM = ROOT / "tests" / "helpers" / "distributed_training.py"


def torchrun(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes ended with, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("distributed")
    done = torchrun(PROGRAM, folder, 6)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder, [torch.load(folder / f"ended-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_processes_end_with_the_same_weights_and_statistics(trained):
    _, (first, second) = trained
    assert any("running_mean" in name for name in first["model"])
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    assert first["map_all"] == second["map_all"]


def test_each_process_learns_from_its_own_half_of_every_batch(trained):
    _, (first, second) = trained
    assert first["seen"] == second["seen"] == [8] * 18, "48 images learnt from, 16 a batch, 6 epochs"
    assert first["order"] != second["order"]
    together = [label for ended in (first, second) for batch in ended["order"][:3] for label in batch]
    assert len(together) == 48


def test_the_first_process_alone_reports_and_writes(trained):
    folder, (first, _) = trained
    assert sorted(path.name for path in folder.iterdir()) == ["ended-0.pt", "ended-1.pt", "epochs-0", "model"]
    assert (folder / "epochs-0").read_text().split() == [str(number) for number in range(1, 7)]
    loaded = checkpoint.load(folder / "model")
    assert torch.equal(loaded.hash.weight, first["model"]["hash.weight"])
    assert checkpoint.read_header(folder / "model")["training"]["processes"] == 2


def test_two_processes_learn_what_is_easy(trained):
    assert trained[1][0]["map_all"] > 0.8


def test_a_batch_that_cannot_be_shared_out_is_refused_before_the_processes_meet(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = TrainingOptions(epochs=1, batch_size=15)
    with pytest.raises(InputError, match="batch_size = 15 must be a multiple of the 2 processes"):
        training.fit(CONFIG, colours(), SplitOptions(4, 16), options, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_process_alone_is_the_first_and_averages_nothing():
    alone, values = started_by_torchrun(), torch.tensor([1.0, 2.0])
    assert (alone, alone.first) == (Ranks(0, 1), True)
    assert alone.mean(values) is values
    assert alone.of_first(0.25, torch.device("cpu")) == 0.25
    assert alone.part_of(7) == 7
    model = torch.nn.Linear(1, 1)
    assert alone.wrapped(model) is model


@pytest.mark.parametrize(("batch_size", "count"), [(7, 2), (2, 2), (64, 3)])
def test_a_part_has_at_least_two_images_and_all_parts_are_equal(batch_size, count):
    with pytest.raises(InputError, match=f"batch_size = {batch_size}"):
        Ranks(0, count).part_of(batch_size)
    assert Ranks(1, count).part_of(4 * count) == 4
