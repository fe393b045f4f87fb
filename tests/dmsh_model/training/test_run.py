import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from coloured import SPLIT, config, stop_after, weights_of

from dmsh_model import checkpoint
from dmsh_model.config import LossWeights
from dmsh_model.data.labelled import LabelledImages
from dmsh_model.data.split import SplitOptions
from dmsh_model.training import loop as training_loop
from dmsh_model.training import run as training
from dmsh_model.training.augmentation import augment
from dmsh_model.training.options import Augmentation, TrainingOptions
from dmsh_model.training.state import FORMAT, FORMAT_VERSION, state_path
from dmsh_model.weights.read import read_pretrained
from dmsh_serving.errors import CheckError, InputError

OPTIONS = TrainingOptions(epochs=3, batch_size=16, warmup_epochs=1)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training that ran through."""
    out = tmp_path_factory.mktemp("whole") / "model"
    epochs = []
    return out, training.fit(config(), data, SPLIT, OPTIONS, out, on_epoch=epochs.append), epochs


def test_training_learns_what_is_easy_and_writes_a_checkpoint(data, tmp_path):
    out = tmp_path / "model"
    epochs = []
    options = dataclasses.replace(OPTIONS, epochs=8)
    trained = training.fit(config(), data, SPLIT, options, out, on_epoch=epochs.append)
    assert trained.map_all > 0.95
    assert epochs[-1].loss < epochs[0].loss
    assert np.array_equal(checkpoint.load(out).codes(data.images), trained.model.codes(data.images))
    assert list(tmp_path.iterdir()) == [out], "no training state is left"


def test_every_epoch_is_reported_with_its_losses(whole):
    _, _, epochs = whole
    assert [(epoch.number, epoch.of) for epoch in epochs] == [(1, 3), (2, 3), (3, 3)]
    weights = LossWeights()
    for epoch in epochs:
        parts = (
            weights.pairwise * epoch.pairwise
            + weights.quantisation * epoch.quantisation
            + weights.classification * epoch.classification
        )
        assert epoch.loss == pytest.approx(parts, abs=1e-5)


def test_the_checkpoint_records_how_it_was_trained(whole):
    out, trained, _ = whole
    record = checkpoint.read_header(out)["training"]
    assert record == json.loads(json.dumps(trained.record))
    assert record["options"]["seed"] == 0
    assert record["split"]["train"] == 72
    assert record["map_all"] == trained.map_all


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole, data, tmp_path):
    out, _, _ = whole
    training.fit(config(), data, SPLIT, OPTIONS, tmp_path / "same")
    training.fit(config(), data, SPLIT, dataclasses.replace(OPTIONS, seed=1), tmp_path / "other")
    assert weights_of(tmp_path / "same") == weights_of(out) != weights_of(tmp_path / "other")


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_training_resumes_to_the_same_weights(whole, data, tmp_path, epoch):
    out, _, _ = whole
    with pytest.raises(KeyboardInterrupt):
        training.fit(config(), data, SPLIT, OPTIONS, tmp_path / "model", on_epoch=stop_after(epoch))
    assert not (tmp_path / "model").exists()
    resumed = []
    training.fit(config(), data, SPLIT, OPTIONS, tmp_path / "model", resume=True, on_epoch=resumed.append)
    assert [each.number for each in resumed] == list(range(epoch + 1, 4))
    assert weights_of(tmp_path / "model") == weights_of(out)


def test_resuming_with_another_configuration_is_refused_naming_the_fields(data, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        training.fit(config(), data, SPLIT, OPTIONS, out, on_epoch=stop_after(1))
    before = state_path(out).read_bytes()
    with pytest.raises(InputError) as error:
        training.fit(config(bits=16), data, SPLIT, dataclasses.replace(OPTIONS, epochs=9), out, resume=True)
    assert "config.bits was 12, is 16; options.epochs was 3, is 9" in str(error.value)
    other = dataclasses.replace(data, images=255 - data.images)
    with pytest.raises(InputError, match="data_sha256 was"):
        training.fit(config(), other, SPLIT, OPTIONS, out, resume=True)
    assert state_path(out).read_bytes() == before


def test_an_unfinished_training_is_not_thrown_away_unasked(data, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        training.fit(config(), data, SPLIT, OPTIONS, out, on_epoch=stop_after(1))
    with pytest.raises(InputError, match="holds an unfinished training"):
        training.fit(config(), data, SPLIT, OPTIONS, out)
    training.fit(config(), data, SPLIT, OPTIONS, out, overwrite=True)
    assert list(tmp_path.iterdir()) == [out]


class Code:
    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


def test_a_state_that_is_missing_damaged_or_holds_code_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "model"
    with pytest.raises(InputError, match="no unfinished training to resume"):
        training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    state_path(out).write_bytes(b"half a state")
    with pytest.raises(InputError, match="is damaged"):
        training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    torch.save({"epochs_done": 1}, state_path(out))
    with pytest.raises(InputError, match="is not a dmsh-training-state of version 1"):
        training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "identity": "{}", "model": {}, "optimiser": {}}
    for changed in ({}, {"epochs_done": "two"}, {"epochs_done": 1, "identity": "[]"}):
        torch.save(whole | changed, state_path(out))
        with pytest.raises(InputError, match=r"is damaged .*remove it and train anew"):
            training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    torch.save(whole | {"epochs_done": 1, "model": {"weight": torch.zeros(1000)}}, state_path(out))
    content = bytearray(state_path(out).read_bytes())
    content[content.index(bytes(64))] ^= 1  # one bit of a weight
    state_path(out).write_bytes(content)
    with pytest.raises(InputError, match="is damaged: Bad CRC-32 for file"):
        training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    torch.save(Code(), state_path(out))
    with pytest.raises(InputError, match="holds more than tensors"):
        training.fit(config(), data, SPLIT, OPTIONS, out, resume=True)
    assert not (tmp_path / "it-ran").exists()


def test_a_loss_that_is_not_a_number_stops_with_its_step_and_keeps_the_last_good_state(data, tmp_path, monkeypatch):
    out = tmp_path / "model"
    calls = []

    def poisoned(logits, *arguments):
        calls.append(1)
        return real(logits * (float("nan") if len(calls) == 7 else 1), *arguments)

    real = training.total_loss
    monkeypatch.setattr(training, "total_loss", poisoned)
    with pytest.raises(
        CheckError, match=r"the loss is nan in epoch 2, step 3 of 4: .* the state after epoch 1 is kept"
    ):
        training.fit(config(), data, SPLIT, OPTIONS, out)
    assert torch.load(state_path(out), weights_only=True)["epochs_done"] == 1
    assert not out.exists()


def test_an_old_checkpoint_survives_a_training_that_fails(whole, data, tmp_path, monkeypatch):
    out = tmp_path / "model"
    training.fit(config(), data, SPLIT, OPTIONS, out)
    before = weights_of(out)
    monkeypatch.setattr(training, "held_out_map", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.fit(config(), data, SPLIT, dataclasses.replace(OPTIONS, seed=5), out, overwrite=True)
    assert weights_of(out) == before


def test_a_taken_name_is_refused_before_anything_is_trained(whole, data):
    out, _, _ = whole
    epochs = []
    with pytest.raises(InputError, match="exists already"):
        training.fit(config(), data, SPLIT, OPTIONS, out, on_epoch=epochs.append)
    assert epochs == []


def test_more_bits_than_training_images_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="72 training images cannot give 73 bits"):
        training.fit(config(bits=73), data, SPLIT, OPTIONS, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_one_image_is_refused_by_its_name(data, tmp_path):
    rows = [*range(80), 80]
    few = LabelledImages("few", data.images[rows], data.labels[rows], [str(n) for n in rows], data.class_names)
    with pytest.raises(InputError, match=r"1 classes have no more than 1 images.*: b \(1\)"):
        training.fit(config(), few, SplitOptions(queries_per_class=1), OPTIONS, tmp_path / "model")


@pytest.mark.parametrize("several", [False, True])
def test_centres_alone_teach_codes_with_one_label_and_with_several(data, tmp_path, several):
    if several:
        labels = np.eye(3, dtype=np.uint8)[data.labels]
        data = LabelledImages("rows", data.images, labels, data.names, data.class_names)
    weights = LossWeights(pairwise=0, classification=0, balance=0.1, centres=1, imbalance=1)
    options, epochs = dataclasses.replace(OPTIONS, epochs=8), []
    trained = training.fit(config(loss=weights), data, SPLIT, options, tmp_path / "model", on_epoch=epochs.append)
    assert trained.map_all > 0.95
    assert epochs[-1].centres < epochs[0].centres
    assert checkpoint.load(tmp_path / "model").config.loss == weights


def test_a_backbone_may_start_from_given_weights(data, tmp_path):
    backbone = training.DMSH(config()).backbone
    state = {name: torch.full_like(tensor, 0.01) for name, tensor in backbone.state_dict().items()}
    torch.save(state, tmp_path / "start.pth")
    still = dataclasses.replace(OPTIONS, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    pretrained = read_pretrained(str(tmp_path / "start.pth"), config().backbone)
    trained = training.fit(config(), data, SPLIT, still, tmp_path / "model", pretrained=pretrained)
    assert torch.allclose(trained.model.backbone.stages[0][0].weight, torch.tensor(0.01), atol=1e-6)


def test_a_config_or_data_that_do_not_fit_are_refused(data, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(InputError, match=r"num_classes = 4, but colours has 3"):
        training.fit(config(num_classes=4), data, SPLIT, OPTIONS, out)
    with pytest.raises(InputError, match="images of 16 pixels, the config 32"):
        training.fit(config(image_size=32), data, SPLIT, OPTIONS, out)
    with pytest.raises(InputError, match="is not a folder"):
        training.fit(config(), data, SPLIT, OPTIONS, tmp_path / "absent" / "model")
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_callers_random_numbers_and_threads_alone(data, tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.fit(config(), data, SPLIT, dataclasses.replace(OPTIONS, epochs=1, threads=threads + 1), tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_the_learning_rate_warms_up_and_falls_to_zero():
    options = TrainingOptions(epochs=10, learning_rate=1.0, warmup_epochs=2)
    rates = [training_loop.learning_rate_at(step / 10, options) for step in range(101)]
    peak = rates.index(max(rates))
    assert peak == 20
    assert rates[peak] == 1
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < 0.5
    assert rates[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0},
     {"seed": -1}, {"threads": 0}, {"warmup_epochs": -1}],
)  # fmt: skip
def test_options_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        TrainingOptions(**fields)


def images_with_a_dot():
    images = torch.zeros(64, 17, 17, 3, dtype=torch.uint8)
    images[:, 8, 3] = 255
    return images


def moved(options, seed=0):
    return augment(images_with_a_dot(), options, torch.Generator().manual_seed(seed))


def test_no_augmentation_changes_nothing():
    assert torch.allclose(moved(Augmentation(0, 0, 0)), images_with_a_dot().float(), atol=1e-3)


def test_augmentation_depends_on_its_generator_alone():
    assert torch.equal(moved(Augmentation(), 1), moved(Augmentation(), 1))
    assert not torch.equal(moved(Augmentation(), 1), moved(Augmentation(), 2))


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = moved(Augmentation(0, 0, 0, flip=True))
    on_the_right = (flipped[:, 8, 13, 0] > 250).sum().item()
    assert 16 < on_the_right < 48
    assert on_the_right + (flipped[:, 8, 3, 0] > 250).sum().item() == 64


def test_a_shift_moves_by_at_most_its_pixels():
    columns = moved(Augmentation(2, 0, 0)).sum(dim=(1, 3))  # (64, 17)
    centres = (columns * torch.arange(17)).sum(dim=1) / columns.sum(dim=1)
    assert (centres - 3).abs().max() <= 2.001
    assert (centres - 3).abs().max() > 1


@pytest.mark.parametrize("fields", [{"shift_pixels": -1.0}, {"scale": 1.0}, {"rotation_degrees": float("nan")}])
def test_augmentation_out_of_range_is_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        Augmentation(**fields)
