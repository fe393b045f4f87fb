import dataclasses

import numpy as np
import pytest
import torch

from dmsh_export.to_onnx.fold import fold
from dmsh_model import checkpoint
from dmsh_model.config import HashConfig, LossWeights
from dmsh_model.data.split import SplitOptions
from dmsh_model.evaluation.mean_average_precision import mean_average_precision
from dmsh_model.frozen import run, taps
from dmsh_model.frozen.options import FrozenOptions
from dmsh_model.network import DMSH
from dmsh_model.training.loop import held_out_map
from dmsh_model.training.options import UNCHANGED, TrainingOptions
from dmsh_model.training.state import state_path
from dmsh_model.weights.read import read_pretrained
from dmsh_serving.errors import CheckError, InputError

pytestmark = pytest.mark.slow

CONFIG = HashConfig("vgg_small", 16, 16, lateral_features=8, fusion_features=16, num_classes=3)
SPLIT = SplitOptions(queries_per_class=5, train_per_class=None)
OPTIONS = TrainingOptions(epochs=4, batch_size=32, augmentation=UNCHANGED, learning_rate=1e-2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vgg_small.pth"
    torch.save(DMSH(CONFIG).backbone.state_dict(), path)
    return read_pretrained(str(path), "vgg_small")


def fit(data, weights, out, options=OPTIONS, **more):
    return run.fit_head(CONFIG, data, SPLIT, options, out, weights, **more)


def tensors(path):
    return checkpoint.load(path).state_dict()


def test_the_checkpoint_is_an_ordinary_one_whose_trunk_is_the_weights(data, weights, tmp_path):
    trained = fit(data, weights, tmp_path / "model")
    assert trained.map_all > 0.8
    model = checkpoint.load(tmp_path / "model")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, weights.tensors[name])
    split = run.planned(CONFIG, data, SPLIT, OPTIONS, tmp_path / "x", pretrained=weights, overwrite=False).split
    assert held_out_map(model, data, split) == pytest.approx(trained.map_all, abs=1e-3)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_network_and_its_folded_head_compute_what_was_trained(data, weights, tmp_path, monkeypatch):
    seen = {}

    def watch(head, vectors):
        seen.update(head=head, taps=vectors)
        return torch.zeros(len(vectors), 2, dtype=torch.uint8).numpy()

    monkeypatch.setattr(run, "_codes", watch)
    before = run.PooledHead.take_standardised
    trained_logits = []

    def take(head, mean, deviation):
        with torch.inference_mode():
            trained_logits.append(head.eval()(seen["taps"]).numpy())
        before(head, mean, deviation)

    monkeypatch.setattr(run.PooledHead, "take_standardised", take)
    trained = fit(data, weights, tmp_path / "model")
    plan = run.planned(CONFIG, data, SPLIT, OPTIONS, tmp_path / "x", pretrained=weights, overwrite=False)
    images = data.images[plan.split.database]
    reference = trained_logits[0]
    assert np.abs(reference).max() > 0.5
    assert np.abs(trained.model.logits(images) - reference).max() < 1e-4
    folded, _ = fold(trained.model)
    with torch.inference_mode():
        assert np.abs(folded(torch.from_numpy(images)).numpy() - reference).max() < 1e-4


def test_the_same_command_gives_the_same_weights_interrupted_or_not(data, weights, tmp_path):
    fit(data, weights, tmp_path / "whole")

    def interrupt(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, weights, tmp_path / "model", on_epoch=interrupt)
    assert (tmp_path / "model.taps").is_dir()
    with pytest.raises(InputError, match="holds an unfinished training: continue it with --resume"):
        fit(data, weights, tmp_path / "model")
    numbers = []
    fit(data, weights, tmp_path / "model", resume=True, on_epoch=lambda epoch: numbers.append(epoch.number))
    assert numbers == [3, 4]
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_kept_cache_is_used_again_and_that_of_other_weights_is_said(data, weights, tmp_path, monkeypatch):
    fit(data, weights, tmp_path / "first", cache=tmp_path / "cache")
    computed, notes = [], []
    monkeypatch.setattr(taps.PooledTrunk, "_computed", lambda self, block: computed.append(block))
    fit(data, weights, tmp_path / "second", cache=tmp_path / "cache", on_note=notes.append)
    assert (computed, notes) == ([], [])
    monkeypatch.undo()
    other = dataclasses.replace(weights, tensors={name: tensor * 1.5 for name, tensor in weights.tensors.items()})
    fit(data, other, tmp_path / "third", cache=tmp_path / "cache", on_note=notes.append)
    assert len(notes) == 1
    assert "other weights or preprocessing: they are computed anew" in notes[0]


def test_the_whole_network_goes_on_after_so_many_epochs(data, weights, tmp_path):
    frozen, numbers = FrozenOptions(unfreeze_after=3), []
    trained = fit(
        data, weights, tmp_path / "whole", frozen=frozen, on_epoch=lambda e: numbers.append((e.number, e.of, e.loss))
    )
    assert [number[:2] for number in numbers] == [(1, 3), (2, 3), (3, 3), (4, 4)]
    assert numbers[3][2] < numbers[0][2]
    moved = {n: (t - weights.tensors[n]).abs().max() for n, t in trained.model.backbone.state_dict().items()}
    assert moved["stages.0.0.weight"] > 0
    assert moved["stages.0.1.running_mean"] == 0  # the trunk's BN keeps its statistics

    def interrupt(epoch):
        if epoch.number == 4:
            raise KeyboardInterrupt

    options = dataclasses.replace(OPTIONS, epochs=5)
    fit(data, weights, tmp_path / "longer", options, frozen=frozen)
    with pytest.raises(KeyboardInterrupt):
        fit(data, weights, tmp_path / "model", options, frozen=frozen, on_epoch=interrupt)
    assert state_path(tmp_path / "model").exists()
    fit(data, weights, tmp_path / "model", options, frozen=frozen, resume=True)
    whole, resumed = tensors(tmp_path / "longer"), tensors(tmp_path / "model")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["longer", "model", "whole"]


def test_validation_images_choose_the_epoch_and_centres_may_be_learnt(data, weights, tmp_path):
    config = dataclasses.replace(CONFIG, loss=LossWeights(pairwise=0, centres=1))
    options = dataclasses.replace(OPTIONS, validation_share=0.2)
    trained = run.fit_head(config, data, SPLIT, options, tmp_path / "model", weights)
    assert 1 <= trained.record["validation"]["best_epoch"] <= 4
    assert trained.map_all > 0.8


BAD = {
    "activation": (
        {"lateral_activation": "relu"},
        {},
        {},
        "lateral_activation = 'relu' and pooling = 'avg' need whole",
    ),
    "maximum": ({"pooling": "max"}, {}, {}, "need whole feature maps"),
    "bits": ({"bits": 512}, {}, {}, "105 training images cannot give 512 bits"),
    "epochs": ({}, {"frozen": FrozenOptions(unfreeze_after=4)}, {}, "leaves none of 4 epochs"),
    "one image a class": ({}, {}, {"queries_per_class": 40}, "classes have no more than 40 images"),
}


@pytest.mark.parametrize(("network", "more", "split", "message"), BAD.values(), ids=BAD)
def test_what_no_head_can_be_trained_from_is_refused(network, more, split, message, data, weights, tmp_path):
    config = dataclasses.replace(CONFIG, **network)
    with pytest.raises(InputError, match=message):
        run.fit_head(config, data, dataclasses.replace(SPLIT, **split), OPTIONS, tmp_path / "model", weights, **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"noise": -1}, {"unfreeze_after": -1}, {"unfrozen_rate": 0}])
def test_options_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=f"{next(iter(values))} = "):
        FrozenOptions(**values)


def test_images_of_one_colour_are_refused(data, weights, tmp_path):
    same = dataclasses.replace(data, images=np.full_like(data.images, 200))
    with pytest.raises(InputError, match="same features for all images: are they all alike, or of one colour"):
        fit(same, weights, tmp_path / "model")


def test_weights_that_give_no_numbers_are_a_failed_check(data, weights, tmp_path):
    broken = dataclasses.replace(weights, tensors={name: tensor * np.nan for name, tensor in weights.tensors.items()})
    with pytest.raises(CheckError, match="a feature of the trunk is NaN or infinite"):
        fit(data, broken, tmp_path / "model")


def test_the_queries_are_not_learnt_from(data, weights, tmp_path):
    plan = run.planned(CONFIG, data, SPLIT, OPTIONS, tmp_path / "x", pretrained=weights, overwrite=False)
    changed = data.images.copy()
    changed[plan.split.query] = 255 - changed[plan.split.query]
    fit(data, weights, tmp_path / "one")
    fit(dataclasses.replace(data, images=changed), weights, tmp_path / "two")
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_the_codes_of_the_checkpoint_give_the_map_it_records(data, weights, tmp_path):
    trained = fit(data, weights, tmp_path / "model")
    plan = run.planned(CONFIG, data, SPLIT, OPTIONS, tmp_path / "x", pretrained=weights, overwrite=False)
    model, split = checkpoint.load(tmp_path / "model"), plan.split
    codes = [model.codes(data.images[rows]) for rows in (split.query, split.database)]
    labels = [data.labels[rows] for rows in (split.query, split.database)]
    assert mean_average_precision(*codes, *labels) == pytest.approx(trained.record["map_all"], abs=1e-3)
