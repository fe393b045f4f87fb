"""Rates, early stopping and where a training runs."""

import dataclasses

import numpy as np
import pytest
import torch

from dmsh_model import HashConfig, checkpoint
from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.split import SplitOptions
from dmsh_model.training import device as training_device
from dmsh_model.training import run as training
from dmsh_model.training.early_stopping import better, is_over, validation_split
from dmsh_model.training.options import TrainingOptions
from dmsh_model.training.state import state_path
from dmsh_serving.errors import InputError, MissingError

SPLIT = SplitOptions(queries_per_class=5, train_per_class=24)
OPTIONS = TrainingOptions(epochs=4, batch_size=16, warmup_epochs=1)
CONFIG = HashConfig("vgg_small", 12, 16, lateral_features=8, fusion_features=16, num_classes=3)


@pytest.fixture(scope="module")
def data():
    """Three classes that differ in colour, 40 noisy 16x16 images each."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    images = random.integers(0, 120, (120, 16, 16, 3))
    images[np.arange(120), :, :, labels] += 130
    return LabelledImages("colours", images.astype(np.uint8), labels, [str(n) for n in range(120)], ["r", "g", "b"])


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_trunk_at_rate_zero_stays_as_it_was_while_the_rest_learns(data, tmp_path):
    torch.manual_seed(OPTIONS.seed)
    untrained = training.DMSH(CONFIG)
    options = dataclasses.replace(OPTIONS, epochs=1, trunk_rate=0.0)
    trained = training.fit(CONFIG, data, SPLIT, options, tmp_path / "model").model
    for (name, before), (_, after) in zip(untrained.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(before, after) == name.startswith("backbone."), name


def test_each_part_of_a_network_learns_at_its_own_rate(data, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self, *arguments, **keywords):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    options = dataclasses.replace(OPTIONS, epochs=1, trunk_rate=0.25)
    training.fit(CONFIG, data, SPLIT, options, tmp_path / "model")
    for rest, rest_biases, trunk, trunk_biases in rates:
        assert rest == rest_biases == 4 * trunk == 4 * trunk_biases > 0


def follow(monkeypatch, maps):
    """Let the validation's mAP be ``maps``, one after the other, and the queries' as it is."""
    real, left = training.held_out_map, list(maps)

    def scripted(model, data, split):
        return left.pop(0) if len(split.train) == 58 else real(model, data, split)

    monkeypatch.setattr(training, "held_out_map", scripted)


def test_training_stops_when_patience_ends_and_keeps_the_best_epochs_weights(data, tmp_path, monkeypatch):
    kept = {}

    def on_epoch(epoch):
        state = torch.load(state_path(tmp_path / "model"), weights_only=True)
        kept[epoch.number] = state["model"]["hash.weight"].clone()

    follow(monkeypatch, [0.5, 0.7, 0.7, 0.6])
    options = dataclasses.replace(OPTIONS, epochs=9, validation_share=0.2, patience=2)
    trained = training.fit(CONFIG, data, SPLIT, options, tmp_path / "model", on_epoch=on_epoch)
    assert list(kept) == [1, 2, 3, 4]
    assert torch.equal(trained.model.hash.weight, kept[2])
    assert trained.record["validation"] == {"queries": 14, "database": 58, "best_epoch": 2, "map_all": 0.7}
    assert torch.equal(checkpoint.load(tmp_path / "model").hash.weight, kept[2])


def test_a_training_that_looks_for_its_best_epoch_resumes_to_the_same_weights(data, tmp_path):
    options = dataclasses.replace(OPTIONS, validation_share=0.2, patience=3, trunk_rate=0.5)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    whole = training.fit(CONFIG, data, SPLIT, options, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        training.fit(CONFIG, data, SPLIT, options, tmp_path / "cut", on_epoch=stop)
    with pytest.raises(InputError, match=r"options\.patience was 3, is 0"):
        training.fit(CONFIG, data, SPLIT, OPTIONS, tmp_path / "cut", resume=True)
    cut = training.fit(CONFIG, data, SPLIT, options, tmp_path / "cut", resume=True)
    assert weights_of(tmp_path / "whole") == weights_of(tmp_path / "cut")
    assert cut.record == whole.record


def test_validation_takes_training_images_alone_each_once():
    split = Split(np.arange(5), np.arange(5, 50), np.arange(10, 40))
    part = validation_split(split, 0.2, seed=1)
    assert (len(part.query), len(part.train)) == (6, 24)
    assert np.array_equal(part.database, part.train)
    assert sorted([*part.query, *part.train]) == list(range(10, 40))
    with pytest.raises(InputError, match=r"share of 0\.02 of 30 training images is 1"):
        validation_split(split, 0.02, seed=1)


def test_of_equal_epochs_the_earlier_is_the_best():
    model = torch.nn.Linear(1, 1)
    first = better(None, 1, 0.5, model)
    assert better(first, 2, 0.5, model) is first
    assert better(first, 3, 0.6, model).epoch == 3
    assert [is_over(first, done, 2) for done in (1, 2, 3)] == [False, False, True]
    assert not is_over(first, 99, 0)
    assert not is_over(None, 99, 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"trunk_rate": -1.0}, "trunk_rate = -1.0"), ({"validation_share": 0.9}, "validation_share = 0.9"),
     ({"patience": 3}, "needs a validation_share"), ({"patience": -1}, "patience = -1"),
     ({"device": "tpu"}, "device = tpu"), ({"mixed_precision": True}, "mixed_precision is for a GPU")],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(fields, said):
    with pytest.raises(InputError, match=said):
        TrainingOptions(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_missing_before_anything_is_trained(data, tmp_path):
    with pytest.raises(MissingError, match="PyTorch sees 0 GPUs"):
        training.fit(CONFIG, data, SPLIT, dataclasses.replace(OPTIONS, device="cuda"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_mixed_precision_on_a_gpu_learns_and_leaves_a_checkpoint_for_every_machine(data, tmp_path):
    options = dataclasses.replace(OPTIONS, epochs=8, device="cuda", mixed_precision=True)
    trained = training.fit(CONFIG, data, SPLIT, options, tmp_path / "model")
    assert trained.map_all > 0.9
    assert trained.model.hash.weight.device.type == "cpu"


def test_in_mixed_precision_the_network_is_rounded_and_the_losses_are_not():
    with training_device.autocast(torch.device("cpu"), mixed_precision=True):
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == torch.bfloat16
    logits, scores = training._WithScores(training.DMSH(CONFIG), mixed_precision=True)(torch.zeros(2, 16, 16, 3))
    assert logits.dtype == scores.dtype == torch.float32
    assert torch.equal(logits, logits.to(torch.bfloat16).to(torch.float32))
